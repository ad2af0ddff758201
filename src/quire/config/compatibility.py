"""Options of vLLM that quire knows by name and has not built.

One that asks for what quire does anyway (`tensor_parallel_size=1`) passes; any other value is refused, because an
option that is accepted and ignored misleads. The table is data: a new option of quire leaves it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.errors import ConfigError

OFF = (False,)
ON = (True,)
EITHER = (True, False)
NOTHING = ("",)


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """An option that is not built.

    Attributes:
        accepted: The values that ask for what quire does anyway. Booleans make it a switch.
        hint: What to do instead.
    """

    accepted: tuple[Any, ...]
    hint: str

    @property
    def is_switch(self) -> bool:
        """Whether the option takes no value on the command line."""
        return isinstance(self.accepted[0], bool)

    def accepts(self, value: Any) -> bool:
        """Whether `value` may be given: one of `accepted`, or nothing at all."""
        if value is None or value in ({}, []):
            return True
        return any(_comparable(value) == _comparable(other) for other in self.accepted)


@dataclass(frozen=True, slots=True)
class UnbuiltChoices:
    """Choices of vLLM for an option that quire has, which are not built.

    Attributes:
        refused: The choices.
        hint: What to do instead.
    """

    refused: tuple[str, ...]
    hint: str

    def accepts(self, value: Any) -> bool:
        """Whether `value` is none of them; it need not be a choice of quire's either."""
        return value not in self.refused


_GROUPS: tuple[tuple[str, Mapping[str, tuple[Any, ...]]], ...] = (
    (
        "one engine uses one device: start one server per device, each on its own --port, and balance between them",
        {
            "tensor_parallel_size": (1,),
            "pipeline_parallel_size": (1,),
            "data_parallel_size": (1,),
            "data_parallel_size_local": (1,),
            "data_parallel_rank": (0,),
            "data_parallel_start_rank": (0,),
            "data_parallel_address": NOTHING,
            "data_parallel_rpc_port": NOTHING,
            "data_parallel_backend": ("mp",),
            "data_parallel_hybrid_lb": OFF,
            "data_parallel_external_lb": OFF,
            "data_parallel_multi_port_external_lb": OFF,
            "decode_context_parallel_size": (1,),
            "prefill_context_parallel_size": (1,),
            "cp_kv_cache_interleave_size": (1,),
            "distributed_executor_backend": ("mp", "uni"),
            "distributed_timeout_seconds": NOTHING,
            "master_addr": ("127.0.0.1",),
            "master_port": (29501,),
            "nnodes": (1,),
            "node_rank": (0,),
            "headless": OFF,
            "api_server_count": (1,),
            "device_ids": NOTHING,
            "numa_bind": OFF,
            "numa_bind_nodes": NOTHING,
            "numa_bind_cpus": NOTHING,
            "disable_custom_all_reduce": EITHER,
            "enable_expert_parallel": OFF,
            "enable_eplb": OFF,
            "eplb_config": NOTHING,
            "all2all_backend": ("allgather_reducescatter",),
            "enable_dbo": OFF,
            "enable_elastic_ep": OFF,
            "max_parallel_loading_workers": NOTHING,
            "worker_cls": ("auto",),
            "worker_extension_cls": NOTHING,
            "ray_workers_use_nsight": OFF,
        },
    ),
    (
        "leave it out: weights are read as they are, from safetensors in float32, float16 or bfloat16, or from GGUF",
        {
            "quantization_config": NOTHING,
            "allow_deprecated_quantization": OFF,
        },
    ),
    (
        "merge the adapter into the model's weights and serve the result",
        {
            "enable_lora": OFF,
            "lora_modules": NOTHING,
            "max_loras": (1,),
            "max_lora_rank": (16,),
            "max_cpu_loras": NOTHING,
            "lora_dtype": ("auto",),
            "lora_target_modules": NOTHING,
            "fully_sharded_loras": OFF,
            "enable_tower_connector_lora": OFF,
            "default_mm_loras": NOTHING,
            "lora_extra_vocab_size": NOTHING,
        },
    ),
    (
        "leave it out: every token comes from the model itself",
        {
            "speculative_config": NOTHING,
            "speculative_model": NOTHING,
            "num_speculative_tokens": (0,),
            "spec_method": NOTHING,
            "spec_model": NOTHING,
            "spec_tokens": (0,),
        },
    ),
    (
        "--tool-call-parser names one of the formats that quire knows; docs/server.md lists them",
        {
            "tool_parser_plugin": NOTHING,
            "tool_strict_level": ("auto",),
            "tool_server": NOTHING,
        },
    ),
    (
        "--reasoning-parser names one of the formats that quire knows; docs/server.md lists them",
        {
            "reasoning_parser_plugin": NOTHING,
            "reasoning_config": NOTHING,
            "enable_reasoning": OFF,
            "reasoning_effort_map": NOTHING,
            "structured_outputs_config": NOTHING,
            "guided_decoding_backend": ("auto",),
        },
    ),
    (
        "a sequence that is preempted is computed again, with its prefix found in the cache; nothing is swapped out",
        {
            "swap_space": (0,),
            "cpu_offload_gb": (0,),
            "cpu_offload_params": NOTHING,
            "offload_backend": ("auto",),
            "kv_offloading_size": (0,),
            "kv_offloading_backend": ("native",),
            "kv_transfer_config": NOTHING,
            "kv_events_config": NOTHING,
            "preemption_mode": ("recompute",),
            "enable_sleep_mode": OFF,
            "weight_transfer_config": NOTHING,
        },
    ),
    (
        "leave it out: nothing is compiled; --enforce-eager turns CUDA graphs off, and --cudagraph-capture-sizes says "
        "for which numbers of sequences there are any",
        {
            "compilation_config": NOTHING,
            "optimization_level": (0,),
            "performance_mode": ("balanced",),
            "max_cudagraph_capture_size": NOTHING,
            "max_seq_len_to_capture": NOTHING,
            "attention_backend": ("auto",),
            "attention_config": NOTHING,
            "kernel_config": NOTHING,
            "moe_backend": ("auto",),
            "linear_backend": ("auto",),
            "enable_flashinfer_autotune": OFF,
        },
    ),
    (
        "leave it out: the scheduler has one token budget per step and always keeps two steps in flight",
        {
            "async_scheduling": ON,
            "num_scheduler_steps": (1,),
            "max_num_scheduled_tokens": NOTHING,
            "max_num_active_seqs": NOTHING,
            "long_prefill_token_threshold": (0,),
            "long_prefill_token_threshold_adaptive": OFF,
            "max_num_partial_prefills": (1,),
            "max_long_partial_prefills": (1,),
            "prefill_schedule_interval": (1,),
            "scheduler_cls": NOTHING,
            "scheduler_reserve_full_isl": EITHER,
            "watermark": (0,),
            "disable_hybrid_kv_cache_manager": EITHER,
            "num_lookahead_slots": (0,),
        },
    ),
    (
        "leave it out: prefixes are found by a keyed hash of their tokens and compared token by token",
        {
            "prefix_caching_hash_algo": NOTHING,
            "prefix_cache_retention_interval": (0,),
            "prefix_match_unit": NOTHING,
            "kv_cache_dtype_skip_layers": NOTHING,
            "calculate_kv_scales": OFF,
            "kv_sharing_fast_prefill": OFF,
        },
    ),
    (
        "only text models are served",
        {
            "runner": ("auto", "generate"),
            "convert": ("auto", "none"),
            "task": ("auto", "generate"),
            "pooler_config": NOTHING,
            "language_model_only": EITHER,
            "limit_mm_per_prompt": NOTHING,
            "enable_mm_embeds": OFF,
            "enable_prompt_embeds": OFF,
            "media_io_kwargs": NOTHING,
            "mm_processor_kwargs": NOTHING,
            "mm_processor_cache_gb": (0,),
            "allowed_local_media_path": NOTHING,
            "allowed_media_domains": NOTHING,
            "interleave_mm_strings": OFF,
        },
    ),
    (
        "the model's own files decide; change them there",
        {
            "model_impl": ("auto",),
            "tokenizer_mode": ("auto", "hf"),
            "tokenizer_revision": NOTHING,
            "code_revision": NOTHING,
            "skip_tokenizer_init": OFF,
            "hf_config_path": NOTHING,
            "config_format": ("auto", "hf"),
            "hf_overrides": NOTHING,
            "model_class_overrides": NOTHING,
            "override_generation_config": NOTHING,
            "logits_processors": NOTHING,
            "logprobs_mode": ("raw_logprobs",),
            "disable_sliding_window": OFF,
            "disable_cascade_attn": EITHER,
            "additional_config": NOTHING,
            "safetensors_load_strategy": ("lazy",),
            "model_loader_extra_config": NOTHING,
            "ignore_patterns": NOTHING,
        },
    ),
    (
        "the model's chat template is used, or the one of --chat-template; requests pass chat_template_kwargs",
        {
            "chat_template_content_format": ("auto",),
            "response_role": ("assistant",),
            "return_tokens_as_token_ids": OFF,
            "enable_prompt_tokens_details": ON,
            "enable_force_include_usage": OFF,
        },
    ),
    (
        "put a proxy in front of the server (nginx, Caddy): it does TLS, CORS and access logs",
        {
            "ssl_keyfile": NOTHING,
            "ssl_certfile": NOTHING,
            "ssl_ca_certs": NOTHING,
            "ssl_cert_reqs": (0,),
            "ssl_ciphers": NOTHING,
            "enable_ssl_refresh": OFF,
            "allow_credentials": OFF,
            "allowed_origins": NOTHING,
            "allowed_methods": ('["*"]',),
            "allowed_headers": ('["*"]',),
            "middleware": NOTHING,
            "grpc": OFF,
            "sse_keep_alive_interval": (0,),
        },
    ),
    (
        "use --log-level, and /metrics for numbers",
        {
            "uvicorn_log_level": NOTHING,
            "disable_uvicorn_access_log": ON,
            "enable_log_outputs": OFF,
            "logging_config": NOTHING,
            "collect_detailed_traces": NOTHING,
            "kv_cache_metrics": OFF,
            "enable_server_load_tracking": EITHER,
        },
    ),
    (
        "use --torch-profiler-dir FOLDER",
        {
            "profiler_config": NOTHING,
            "enable_layerwise_nvtx_tracing": OFF,
        },
    ),
)

UNBUILT: Mapping[str, Unbuilt] = {
    name: Unbuilt(accepted, hint) for hint, names in _GROUPS for name, accepted in names.items()
}

UNBUILT_ALIASES: Mapping[str, str] = {
    "-tp": "tensor_parallel_size",
    "-pp": "pipeline_parallel_size",
    "-dp": "data_parallel_size",
    "-dpl": "data_parallel_size_local",
    "-dpn": "data_parallel_rank",
    "-dpr": "data_parallel_start_rank",
    "-dpa": "data_parallel_address",
    "-dpp": "data_parallel_rpc_port",
    "-dpb": "data_parallel_backend",
    "-dcp": "decode_context_parallel_size",
    "-pcp": "prefill_context_parallel_size",
    "-ep": "enable_expert_parallel",
    "-asc": "api_server_count",
    "-sc": "speculative_config",
    "-cc": "compilation_config",
    "-ac": "attention_config",
    "-O": "optimization_level",
}

UNBUILT_CHOICES: Mapping[str, UnbuiltChoices] = {
    "load_format": UnbuiltChoices(
        (
            "bitsandbytes",
            "pt",
            "npcache",
            "sharded_state",
            "tensorizer",
            "runai_streamer",
            "fastsafetensors",
            "mistral",
        ),
        "use one of auto, safetensors, gguf, dummy",
    ),
    "kv_cache_dtype": UnbuiltChoices(
        ("fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"), "use one of auto, float16, bfloat16, float32, int8"
    ),
    "quantization": UnbuiltChoices(
        (
            "awq",
            "awq_marlin",
            "gptq",
            "gptq_marlin",
            "bitsandbytes",
            "compressed-tensors",
            "fp8",
            "fbgemm_fp8",
            "modelopt",
            "modelopt_fp4",
            "mxfp4",
            "mxfp8",
            "nvfp4",
            "quark",
            "squeezellm",
            "torchao",
            "experts_int8",
        ),
        "leave it out: weights are read from safetensors in float32, float16 or bfloat16, or from GGUF in any of its "
        "formats; --quantization int8 or int4 rounds them at load, on a CPU",
    ),
}
"""What quire refuses as not built rather than as unknown."""

UNBUILT_COMMANDS: Mapping[str, str] = {
    "run-batch": "`quire generate --file PROMPTS.jsonl --json` runs a file of prompts",
    "launch": "`quire serve` starts a server",
    "preload": "`quire serve` loads from the page cache; there is nothing to keep resident",
    "snapshot": "`quire serve` starts a server",
    "download-kernels": "there is nothing to download: kernels come with the package",
    "collect-env": "`quire info` describes the machine",
    "bench startup": "the log of `quire serve` says what the start spent its time on",
    "bench sweep": "call `quire bench serve` in a loop with --result-filename",
    "bench mm-processor": "only text models are served",
    "bench forward": "`quire bench latency --output-len 1` measures a prompt alone",
}
"""Commands of vLLM that quire does not have, with what to do instead."""


def refuse_unbuilt(values: Mapping[str, Any], *, as_flags: bool) -> None:
    """Checks options that are not built, or have choices that are not; passes over all others.

    Args:
        values: What was given, by name.
        as_flags: Whether the text names them as flags (`--swap-space 32`) or as arguments (`swap_space=32`).

    Raises:
        ConfigError: Naming all the options at fault, with a hint for each.
    """
    known: dict[str, Unbuilt | UnbuiltChoices] = {**UNBUILT, **UNBUILT_CHOICES}
    refused = {name: value for name, value in values.items() if name in known and not known[name].accepts(value)}
    if not refused:
        return
    shown = ", ".join(_shown(name, value, as_flags=as_flags) for name, value in refused.items())
    by_hint: dict[str, list[str]] = {}
    for name in refused:
        by_hint.setdefault(known[name].hint, []).append(name.replace("_", "-") if as_flags else name)
    if len(by_hint) == 1:
        hint = next(iter(by_hint))
    else:
        hint = "; ".join(f"{', '.join(names)}: {text}" for text, names in by_hint.items())
    raise ConfigError(f"not built in this version of quire: {shown}", hint=hint, param=next(iter(refused)))


def _shown(name: str, value: Any, *, as_flags: bool) -> str:
    if not as_flags:
        return f"{name}={value!r}"
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def _comparable(value: Any) -> str:
    """A form in which 1, "1" and "1.0" are equal."""
    text = str(value).strip().lower()
    try:
        return f"{float(text):g}"
    except ValueError:
        return text
