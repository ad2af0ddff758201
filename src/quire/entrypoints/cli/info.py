"""`quire info`: the machine, and what a model needs of it."""

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quire.config.cache import CacheConfig
from quire.config.device import DeviceConfig
from quire.config.engine import EngineConfig
from quire.config.model import ModelConfig
from quire.config.option import option
from quire.entrypoints.cli.command_line import Arguments, CommandLine, GeneralOptions
from quire.entrypoints.cli.machine import describe_machine, installed_version
from quire.entrypoints.cli.terminal import configure_logging

if TYPE_CHECKING:
    from quire.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoOptions:
    """How it is shown."""

    json: bool = option(False, basic=True, help="Write one JSON object.")


COMMAND = CommandLine(
    name="info",
    summary="Show the machine, the device and, with a model, its architecture, sizes and the KV cache per token.",
    groups={
        "output": InfoOptions,
        "model": ModelConfig,
        "cache": CacheConfig,
        "device": DeviceConfig,
        "general": GeneralOptions,
    },
    bare_word="model",
    examples=("quire info", "quire info model.gguf", "quire info org/model --json --device cpu"),
)


def run(arguments: Arguments) -> int:
    """Prints what is known; reads the model's metadata, never its weights.

    Raises:
        CheckpointError: The model cannot be found or read.
        ConfigError: A device is asked for that this machine does not have.
    """
    configure_logging(arguments.make(GeneralOptions).log_level)
    facts: dict[str, Any] = {"machine": describe_machine()}
    config, wanted_device = arguments.make(ModelConfig), arguments.make(DeviceConfig).device
    device = None
    if installed_version("torch") is not None:
        from quire.worker.device import describe_device

        facts["device"] = describe_device(wanted_device)
        device = facts["device"]["device"]
    if config.model:
        from quire.checkpoint.checkpoint import open_checkpoint

        facts["model"] = describe_model(open_checkpoint(config), config, arguments.make(CacheConfig), device)
    print(json.dumps(facts, indent=2) if arguments.make(InfoOptions).json else as_text(facts))
    return 0


def describe_model(
    checkpoint: "Checkpoint", config: ModelConfig, cache: CacheConfig, device: str | None
) -> dict[str, Any]:
    """Architecture and sizes. With a device ("cpu" or "cuda") also the number formats that would be used there."""
    architecture = checkpoint.architecture
    values = 2 * architecture.num_hidden_layers * architecture.num_key_value_heads * architecture.head_dim
    facts = {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "architecture": architecture.name,
        "num_layers": architecture.num_hidden_layers,
        "hidden_size": architecture.hidden_size,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_key_value_heads,
        "head_dim": architecture.head_dim,
        "vocab_size": architecture.vocab_size,
        "context_length": architecture.max_position_embeddings,
        "num_parameters": sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        "weights_bytes": sum(tensor.num_bytes for tensor in checkpoint.tensors.values()),
        "has_chat_template": checkpoint.chat_template is not None,
        "generation_defaults": checkpoint.generation_defaults,
    }
    return facts | ({} if device is None else _number_formats(checkpoint, config, cache, device, values))


def _number_formats(
    checkpoint: "Checkpoint", config: ModelConfig, cache: CacheConfig, device: str, values_per_token: int
) -> dict[str, Any]:
    from quire.worker import dtype as formats

    if device == "cpu":
        from quire.worker.cpu_formats import choose_formats, matrices_by_format

        chosen = choose_formats(EngineConfig(model=config, cache=cache), checkpoint)
        name, kv_dtype, matrices = chosen.name, chosen.kv_cache, matrices_by_format(checkpoint, chosen)
    else:
        formats.check_quantization(config.quantization, checkpoint, device=device)
        dtype = formats.resolve_dtype(config.dtype, checkpoint, device=device)
        name, matrices = formats.dtype_name(dtype), {}
        kv_dtype = formats.resolve_kv_cache_dtype(cache.kv_cache_dtype, dtype, device=device)
    return {
        "dtype": name,
        **({"matrices_by_format": matrices} if matrices else {}),
        "kv_cache_dtype": formats.dtype_name(kv_dtype),
        "kv_bytes_per_token": values_per_token * kv_dtype.itemsize,
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts for people: a heading per part, sizes with units."""
    lines = []
    for part, values in facts.items():
        lines.append(f"{part}:")
        width = max(map(len, values)) + 2
        lines += [f"  {_label(name):<{width}}{_shown(name, value)}" for name, value in values.items()]
    return "\n".join(lines)


def _label(name: str) -> str:
    return name.replace("_bytes", "").replace("_", " ")


def _shown(name: str, value: Any) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and "bytes" in name:
        return _size(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def _size(num_bytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
