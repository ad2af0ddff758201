"""Turns what a user left open into numbers."""

import logging
from dataclasses import replace

from quire.config.engine import EngineConfig
from quire.config.scheduler import SchedulerConfig
from quire.errors import ConfigError

logger = logging.getLogger("quire.config")

# (sequences, tokens) of a step: offline use is after throughput.
OFFLINE_LIMITS = {"cpu": (256, 1024), "cuda": (1024, 16384)}
# (sequences, tokens beside one for each of them) on a server, where all who are answered wait for a step's prompts.
SERVER_LIMITS = {"cpu": (128, 128), "cuda": (512, 1024)}
# Those of prompts, where a step takes as long as its tokens.
SERVER_PROMPT_TOKENS = {"cpu": 64}

CUDA_BLOCK_SIZES = (16, 32, 64)
"""Tokens per block that the attention kernels are made for."""


def resolve(config: EngineConfig, *, context_length: int, device: str, serving: bool) -> EngineConfig:
    """A copy of `config` with device, context and step limits filled in; logs them.

    Args:
        config: As the user gave it.
        context_length: The longest context the model was made for, in tokens.
        device: "cpu" or "cuda", what "auto" means on this machine.
        serving: Whether requests come one by one over HTTP.

    Raises:
        ConfigError: A context longer than the model's, or an option that the device cannot honour.
    """
    wanted = config.model.max_model_len
    if wanted is not None and wanted > context_length:
        raise ConfigError(
            f"max_model_len {wanted} exceeds the {context_length} tokens that the model was made for",
            hint=f"use --max-model-len {context_length} or less",
            param="max_model_len",
        )
    max_model_len = wanted or context_length
    max_num_seqs, max_num_batched_tokens, max_num_prompt_tokens = _step_limits(
        config.scheduler, max_model_len, device, serving=serving
    )
    _check_device_options(config, device, max_num_seqs)
    resolved = replace(
        config,
        model=replace(config.model, max_model_len=max_model_len),
        scheduler=replace(
            config.scheduler,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_prompt_tokens=max_num_prompt_tokens,
        ),
        device=replace(config.device, device=device),
    )
    logger.info(
        "device %s, context %d tokens, at most %d sequences and %d tokens per step",
        device,
        max_model_len,
        max_num_seqs,
        max_num_batched_tokens,
    )
    return resolved


def _step_limits(
    wanted: SchedulerConfig, max_model_len: int, device: str, *, serving: bool
) -> tuple[int, int, int | None]:
    """Sequences, tokens and prompt tokens of a step. A default for tokens is no more than all sequences can have."""
    num_seqs, num_tokens = (SERVER_LIMITS if serving else OFFLINE_LIMITS)[device]
    max_num_seqs = wanted.max_num_seqs or num_seqs
    wanted_tokens = num_tokens + max_num_seqs if serving else max(num_tokens, max_num_seqs)
    usable_tokens = min(wanted_tokens, max_num_seqs * max_model_len)
    keeps_prompts_short = serving and wanted.max_num_batched_tokens is None
    prompt_tokens = SERVER_PROMPT_TOKENS.get(device) if keeps_prompts_short else None
    return (
        max_num_seqs,
        wanted.max_num_batched_tokens or usable_tokens,
        wanted.max_num_prompt_tokens or prompt_tokens,
    )


def _check_device_options(config: EngineConfig, device: str, max_num_seqs: int) -> None:
    if device == "cuda" and config.cache.block_size not in CUDA_BLOCK_SIZES:
        raise ConfigError(
            f"block_size must be one of {', '.join(map(str, CUDA_BLOCK_SIZES))} on a GPU, "
            f"got {config.cache.block_size}",
            hint="use --block-size 16, the default, or --device cpu, which takes every power of two",
            param="block_size",
        )
    sizes = config.device.cudagraph_capture_sizes
    if sizes is not None and device == "cpu":
        raise ConfigError(
            "cudagraph_capture_sizes needs a GPU, and the model runs on the CPU",
            hint="leave it out",
            param="cudagraph_capture_sizes",
        )
    if sizes is not None and max(sizes) > max_num_seqs:
        raise ConfigError(
            f"cudagraph_capture_sizes has {max(sizes)}, and a step has at most {max_num_seqs} sequences",
            hint=f"leave out what is above {max_num_seqs}, or use --max-num-seqs {max(sizes)}",
            param="cudagraph_capture_sizes",
        )
