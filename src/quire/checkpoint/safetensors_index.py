"""Where the tensors of safetensors files are, read and bounds checked by our own code.

A file is an 8-byte little-endian length, a JSON header of that length, then the data:

    {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {...}}

Offsets count from the end of the header. The tensors cover the data without gap or overlap.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from quire.checkpoint.json_file import parse_json_object, read_json_object
from quire.checkpoint.tensor_entry import TensorEntry
from quire.errors import CheckpointNotFoundError, CorruptCheckpointError, TensorMismatchError, UnsupportedModelError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 16

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

INDEX_NAME = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def read_safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file.

    Raises:
        CheckpointNotFoundError: No such file.
        CorruptCheckpointError: Truncated, or offsets, shapes and sizes that contradict each other.
        UnsupportedModelError: A dtype that we do not know.
    """
    header, data_start, file_size = _read_header(path)
    entries = {
        name: _entry(path, name, description, data_start, file_size)
        for name, description in header.items()
        if name != "__metadata__"
    }
    _check_coverage(path, entries, data_start, file_size)
    return entries


def index_safetensors(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a model folder: by its index file, or its only file, or its complete set of shards.

    Raises:
        CheckpointNotFoundError: There is no such file in the folder, or a shard is missing.
        CorruptCheckpointError: A file is malformed, or two files hold the same tensor.
        TensorMismatchError: The index names a tensor that is not in the file it names.
    """
    if (folder / INDEX_NAME).is_file():
        return _index_by_map(folder)
    entries: dict[str, TensorEntry] = {}
    for path in _weight_files(folder):
        for name, entry in read_safetensors_header(path).items():
            if name in entries:
                raise CorruptCheckpointError(f"{path}: tensor {name!r} also stands in {entries[name].file.name}")
            entries[name] = entry
    return entries


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, where the data starts, and the size of the file."""
    try:
        if not path.is_file():
            raise CheckpointNotFoundError(f"{path}: no such file")
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if file_size < 8 or not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_size - 8):
                raise CorruptCheckpointError(
                    f"{path}: header of {header_bytes} bytes in a file of {file_size} bytes; "
                    f"truncated, or not a safetensors file"
                )
            text = file.read(header_bytes)
    except OSError as error:
        raise CheckpointNotFoundError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) != header_bytes:
        raise CorruptCheckpointError(f"{path}: truncated inside the header of {header_bytes} bytes")
    return parse_json_object(text, f"{path}: header"), 8 + header_bytes, file_size


def _entry(path: Path, name: str, description: Any, data_start: int, file_size: int) -> TensorEntry:
    if not isinstance(description, dict):
        raise CorruptCheckpointError(f"{path}: tensor {name!r}: not an object")
    dtype, shape, offsets = description.get("dtype"), description.get("shape"), description.get("data_offsets")
    if not isinstance(dtype, str) or not _are_sizes(shape, MAX_DIMENSIONS) or not _are_sizes(offsets, 2):
        raise CorruptCheckpointError(f"{path}: tensor {name!r}: dtype, shape or data_offsets malformed")
    if dtype not in DTYPE_BYTES:
        raise UnsupportedModelError(f"{path}: tensor {name!r}: dtype {dtype[:40]!r} is not supported")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= file_size - data_start:
        raise CorruptCheckpointError(
            f"{path}: tensor {name!r}: bytes {offsets} of {file_size - data_start} bytes of data; truncated file?"
        )
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if num_bytes != offsets[1] - offsets[0]:
        raise CorruptCheckpointError(
            f"{path}: tensor {name!r}: {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {num_bytes}"
        )
    return TensorEntry(name, path, dtype, tuple(shape), data_start + offsets[0], num_bytes)


def _are_sizes(values: Any, max_length: int) -> TypeGuard[list[int]]:
    return (
        isinstance(values, list)
        and len(values) <= max_length
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _check_coverage(path: Path, entries: dict[str, TensorEntry], data_start: int, file_size: int) -> None:
    end = data_start
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.num_bytes)):
        if entry.offset != end:
            kind = "overlaps the tensor before it" if entry.offset < end else "leaves a gap before it"
            raise CorruptCheckpointError(f"{path}: tensor {entry.name!r}: {kind} (byte {entry.offset}, not {end})")
        end += entry.num_bytes
    if end != file_size:
        raise CorruptCheckpointError(f"{path}: {file_size - end} bytes after the last tensor")


def _index_by_map(folder: Path) -> dict[str, TensorEntry]:
    index_path = folder / INDEX_NAME
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{index_path}: weight_map must be an object with the file of each tensor")
    headers = {name: read_safetensors_header(folder / name) for name in sorted(_checked_names(index_path, weight_map))}
    entries = {}
    for tensor_name, file_name in weight_map.items():
        if tensor_name not in headers[file_name]:
            raise TensorMismatchError(
                f"{folder / file_name}: tensor {tensor_name!r} is missing; {INDEX_NAME} says it is here"
            )
        entries[tensor_name] = headers[file_name][tensor_name]
    return entries


def _checked_names(index_path: Path, weight_map: dict[str, Any]) -> Iterator[str]:
    """The files that the index names; each must lie in the folder itself."""
    for name in {value if isinstance(value, str) else repr(value) for value in weight_map.values()}:
        if not re.fullmatch(r"[\w][\w.+-]*\.safetensors", name):
            raise CorruptCheckpointError(
                f"{index_path}: {name[:100]!r} is not the name of a safetensors file beside it"
            )
        yield name


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    candidates = sorted(
        path for path in folder.glob("*.safetensors") if not path.name.startswith(("adapter_", "consolidated"))
    )
    if len(candidates) == 1:
        return candidates
    shards = [match for path in candidates if (match := _SHARD.fullmatch(path.name))]
    if not shards or len(shards) != len(candidates):
        found = ", ".join(path.name for path in candidates[:5]) or "none"
        raise CheckpointNotFoundError(
            f"{folder}: no model.safetensors, no {INDEX_NAME} and no complete set of shards; found: {found}"
        )
    _check_complete(folder, shards)
    return candidates


def _check_complete(folder: Path, shards: list[re.Match[str]]) -> None:
    count = int(shards[0]["count"])
    numbers = sorted(int(shard["number"]) for shard in shards)
    if len({(shard["stem"], shard["count"]) for shard in shards}) > 1 or numbers != list(range(1, count + 1)):
        missing = sorted(set(range(1, count + 1)) - set(numbers))
        raise CheckpointNotFoundError(
            f"{folder}: {len(shards)} of {count} safetensors shards; missing: {missing[:5]}",
            hint="download the model again",
        )
