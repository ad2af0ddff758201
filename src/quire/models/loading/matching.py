"""Which tensor of a checkpoint goes where in a model; decided from names and shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quire.checkpoint.checkpoint import Checkpoint
from quire.checkpoint.tensor_entry import TensorEntry
from quire.errors import TensorMismatchError, UnsupportedModelError
from quire.models.loading.dequantize import LOADABLE_TYPES, PLAIN_TYPES
from quire.models.loading.gguf_names import has_interleaved_heads, hf_name
from quire.models.placement import Placement

_LLAMA_NAMES = ("LlamaForCausalLM", "MistralForCausalLM")


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor on its way into a parameter.

    Attributes:
        interleaved_heads: Heads whose rows stand in the order of interleaved rope; 0 where no row has moved.
    """

    entry: TensorEntry
    placement: Placement
    interleaved_heads: int = 0


def match_tensors(
    checkpoint: Checkpoint, placements: Mapping[str, Placement], parameters: Mapping[str, Tensor]
) -> list[Transfer]:
    """Pairs each tensor with its place, in the order in which the files hold them.

    Args:
        checkpoint: Its tensors are only named here, not read.
        placements: By Hugging Face's names; what the model declares.
        parameters: The model's; their shapes count, so they may be on the meta device.

    Raises:
        TensorMismatchError: A tensor is missing, unknown or has the wrong shape.
        UnsupportedModelError: A tensor in a number format that cannot be loaded.
    """
    _check_covered(placements, parameters)
    by_hf_name: dict[str, TensorEntry] = {}
    for entry in checkpoint.tensors.values():
        name = hf_name(entry.name) if checkpoint.format == "gguf" else entry.name
        if name in placements:
            by_hf_name[name] = entry
        elif not _is_ignored(name):
            raise TensorMismatchError(
                f"{entry.file}: tensor {entry.name!r} is not part of {checkpoint.architecture.name}"
            )
    missing = [name for name in placements if name not in by_hf_name]
    if missing:
        raise TensorMismatchError(
            f"{checkpoint.path}: tensor {missing[0]!r} is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            hint="the download may be incomplete, or config.json may belong to another model",
        )
    transfers = [_transfer(checkpoint, by_hf_name[name], place, parameters) for name, place in placements.items()]
    return sorted(transfers, key=lambda transfer: (str(transfer.entry.file), transfer.entry.offset))


def _transfer(
    checkpoint: Checkpoint, entry: TensorEntry, placement: Placement, parameters: Mapping[str, Tensor]
) -> Transfer:
    needed = (placement.num_rows, *parameters[placement.parameter].shape[1:])
    if entry.shape != needed:
        raise TensorMismatchError(
            f"{entry.file}: tensor {entry.name!r} has shape {list(entry.shape)}, the model needs {list(needed)}"
        )
    if entry.dtype not in (PLAIN_TYPES if len(needed) == 1 else LOADABLE_TYPES):
        raise UnsupportedModelError(f"{entry.file}: tensor {entry.name!r}: {entry.dtype} weights are not supported")
    heads = 0
    if (
        checkpoint.format == "gguf"
        and checkpoint.architecture.name in _LLAMA_NAMES
        and has_interleaved_heads(entry.name)
    ):
        heads = placement.num_rows // checkpoint.architecture.head_dim
    return Transfer(entry, placement, heads)


def _is_ignored(name: str) -> bool:
    """Buffers that old files store, GGUF's rope factors (they are part of the architecture), a tied output."""
    return name.endswith("rotary_emb.inv_freq") or name in ("rope_freqs.weight", "lm_head.weight")


def _check_covered(placements: Mapping[str, Placement], parameters: Mapping[str, Tensor]) -> None:
    """Each row of each parameter is filled by exactly one tensor."""
    rows: dict[str, list[tuple[int, int]]] = {name: [] for name in parameters}
    for placement in placements.values():
        rows[placement.parameter].append((placement.row_start, placement.num_rows))
    for name, spans in rows.items():
        end = 0
        for start, count in sorted(spans):
            assert start == end, f"rows {start} and {end} of {name} do not meet"
            end += count
        assert end == parameters[name].shape[0], f"{end} of {parameters[name].shape[0]} rows of {name} are filled"
