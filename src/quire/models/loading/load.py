"""Builds a model and fills it from its checkpoint."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quire.checkpoint.checkpoint import Checkpoint
from quire.kernels.linear import PackedWeight
from quire.layers.embedding import Embedding
from quire.layers.linear import Linear
from quire.layers.logits import LogitsHead
from quire.models.decoder import DecoderModel
from quire.models.loading.dequantize import Dequantizer
from quire.models.loading.mapped_files import MappedFiles
from quire.models.loading.matching import Transfer, match_tensors
from quire.models.loading.native_packing import NativePacking
from quire.models.loading.random_weights import RandomWeights
from quire.models.loading.weight_writer import WeightWriter
from quire.models.registry import create_model


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    progress: bool = True,
    device: torch.device | str = "cpu",
    seed: int = 0,
    max_model_len: int | None = None,
) -> DecoderModel:
    """A model with its weights, ready to run, without gradients.

    Names and shapes are compared before any memory is taken, so a file that does not fit costs nothing. Each weight
    is packed as soon as it is whole: at no time is there more than one weight in two layouts.

    Args:
        checkpoint: What to load; random weights where its format is dummy.
        dtype: Of the parameters.
        progress: Whether a bar shows the bytes read, where standard error is a terminal.
        device: Where the parameters go.
        seed: Of random weights.
        max_model_len: See `create_model`.

    Raises:
        TensorMismatchError: A tensor is missing, unknown or has the wrong shape; names file and tensor.
        UnsupportedModelError: A tensor in a number format that cannot be loaded.
        CorruptCheckpointError: A file has changed since its header was read.
    """
    model = create_model(checkpoint.architecture, dtype=dtype, device="meta", max_model_len=max_model_len)
    load_weights(model, checkpoint, progress=progress, device=device, seed=seed)
    return model


def load_weights(
    model: DecoderModel,
    checkpoint: Checkpoint,
    *,
    progress: bool = True,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> None:
    """Fills a model that was built on the meta device and makes it ready to run. See `load_model`."""
    for name in fill_parameters(model, checkpoint, progress=progress, device=torch.device(device), seed=seed):
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Linear) and name.endswith(".weight"):
            module.finish_loading()
    model.finish_loading()
    model.eval()


@torch.no_grad()
def load_packed_weights(
    model: DecoderModel, checkpoint: Checkpoint, packing: NativePacking, *, progress: bool = True, seed: int = 0
) -> None:
    """Fills a model that was built on the meta device for the compiled CPU kernels.

    Matrices go from their files into the kernels' layout, vectors become parameters. See `load_model`.
    """
    if checkpoint.format == "dummy":
        for name in fill_parameters(model, checkpoint, progress=False, device=torch.device("cpu"), seed=seed):
            module = _matrix_owner(model, name)
            if module is not None:
                assert module.weight is not None
                _take_packed(module, packing.pack_floats(module.weight, is_vocabulary=not isinstance(module, Linear)))
        model.finish_loading()
        model.eval()
        return
    transfers = match_tensors(checkpoint, model.tensor_map(), dict(model.named_parameters()))
    files = MappedFiles()
    total = sum(transfer.entry.num_bytes for transfer in transfers)
    with (
        Dequantizer() as dequantizer,
        WeightWriter(torch.device("cpu")) as writer,
        tqdm(total=total, unit="B", unit_scale=True, desc="Loading weights", disable=None if progress else True) as bar,
    ):
        for name, of_parameter in _by_parameter(transfers).items():
            module, parameter = _matrix_owner(model, name), model.get_parameter(name)
            if module is None:
                parameter = _allocate(model, name, parameter, torch.device("cpu"))
                for transfer in of_parameter:
                    _put(writer, parameter, files.rows(transfer.entry), transfer)
            else:
                packed = packing.pack(
                    parameter.shape,
                    of_parameter,
                    lambda transfer: _in_order(files.rows(transfer.entry), transfer),
                    dequantizer,
                    is_vocabulary=not isinstance(module, Linear),
                )
                _take_packed(module, packed)
            for transfer in of_parameter:
                files.forget(transfer.entry)
                bar.update(transfer.entry.num_bytes)
    packing.report()
    model.finish_loading()
    model.eval()


def _matrix_owner(model: DecoderModel, name: str) -> Linear | Embedding | LogitsHead | None:
    """The module whose matrix that parameter is; None for a vector."""
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    return module if attribute == "weight" and isinstance(module, (Linear, Embedding, LogitsHead)) else None


def _take_packed(module: Linear | Embedding | LogitsHead, packed: PackedWeight) -> None:
    module.packed, module.weight = packed, None


@torch.no_grad()
def fill_parameters(
    model: DecoderModel, checkpoint: Checkpoint, *, progress: bool, device: torch.device, seed: int
) -> Iterator[str]:
    """Gives the parameters of a meta model their memory and content, one by one; yields the name of each."""
    if checkpoint.format == "dummy":
        random_weights = RandomWeights(seed)
        for name, parameter in list(model.named_parameters()):
            random_weights.fill(name, _allocate(model, name, parameter, device))
            yield name
        return
    transfers = match_tensors(checkpoint, model.tensor_map(), dict(model.named_parameters()))
    files = MappedFiles()
    total = sum(transfer.entry.num_bytes for transfer in transfers)
    with (
        WeightWriter(device) as writer,
        tqdm(total=total, unit="B", unit_scale=True, desc="Loading weights", disable=None if progress else True) as bar,
    ):
        for name, of_parameter in _by_parameter(transfers).items():
            parameter = _allocate(model, name, model.get_parameter(name), device)
            for transfer in of_parameter:
                _put(writer, parameter, files.rows(transfer.entry), transfer)
                bar.update(transfer.entry.num_bytes)
            yield name


def _by_parameter(transfers: list[Transfer]) -> dict[str, list[Transfer]]:
    """The transfers into each parameter, in the order in which the files hold the first of them."""
    groups: dict[str, list[Transfer]] = {}
    for transfer in transfers:
        groups.setdefault(transfer.placement.parameter, []).append(transfer)
    return groups


def _allocate(model: nn.Module, name: str, parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Replaces a meta parameter by one on the device, its content undefined."""
    owner, _, attribute = name.rpartition(".")
    replacement = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device), requires_grad=False)
    setattr(model.get_submodule(owner), attribute, replacement)
    return replacement


def _put(writer: WeightWriter, parameter: Tensor, rows: Tensor, transfer: Transfer) -> None:
    """Writes one tensor into its rows of the parameter."""
    place = transfer.placement
    target = parameter[place.row_start : place.row_start + place.num_rows]
    writer.write(_in_order(rows, transfer), transfer.entry.dtype, target.view(place.num_rows, -1))


def _in_order(rows: Tensor, transfer: Transfer) -> Tensor:
    """A tensor's rows in the order in which the model has them."""
    return _halves_first(rows, transfer.interleaved_heads) if transfer.interleaved_heads else rows


def _halves_first(rows: Tensor, num_heads: int) -> Tensor:
    """Undoes the order of interleaved rope: per head all even rows, then all odd ones."""
    return rows.view(num_heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
