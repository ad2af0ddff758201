"""The container of GGUF, versions 2 and 3, read over mmap with every count and offset checked.

A file is, little-endian: "GGUF", version, number of tensors, number of keys; the keys with their typed values;
the tensors' descriptions; padding to the alignment; the data. Long arrays are skipped when the file is opened and
decoded on demand: a vocabulary has a hundred thousand strings.
"""

import math
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.checkpoint.tensor_entry import TensorEntry
from quire.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedModelError

MAX_KEYS = 65_536
MAX_TENSORS = 1_000_000
MAX_NAME_BYTES = 65_535
MAX_ARRAY_STRINGS = 2**24
MAX_ARRAY_DEPTH = 4
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20

_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8

_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}

# Type number: name, values per block, bytes per block.
GGML_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


@dataclass(frozen=True, slots=True)
class GGUFField:
    """A value that has been located but not decoded.

    Attributes:
        kind: Type number of the value, or of an array's elements.
        count: Elements of an array; None for a single value.
        position: Of the value's first byte; of the first element of an array.
    """

    kind: int
    count: int | None
    position: int


class GGUFFile:
    """An open GGUF file: its keys, and where its tensors are.

    Attributes:
        fields: By key; `value` decodes them.
        tensors: By name, shapes row-major.

    Raises:
        CheckpointNotFoundError: No such file.
        CorruptCheckpointError: Not GGUF, truncated, or a count, length or offset that leads out of the file.
        UnsupportedModelError: A version, byte order or tensor type that we do not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _map_file(path)
        self._size = len(self._data)
        self._array_strings_left = MAX_ARRAY_STRINGS
        num_tensors, num_keys = self._read_preamble()
        self.fields: dict[str, GGUFField] = {}
        self.tensors: dict[str, TensorEntry] = {}
        end_of_fields = self._read_fields(num_keys, 24)
        self._read_tensors(num_tensors, end_of_fields)

    def value(self, key: str, default: Any = None) -> Any:
        """Decodes a value: int, float, bool, str or a list of those; the default where the key is absent."""
        field = self.fields.get(key)
        if field is None:
            return default
        if field.count is None:
            return self._decode_one(key, field.kind, field.position)[0]
        return self._decode_array(key, field.kind, field.count, field.position)[0]

    def length(self, key: str) -> int:
        """Number of elements of an array; 0 where the key is absent or no array."""
        field = self.fields.get(key)
        return (field.count or 0) if field else 0

    def _corrupt(self, what: str, why: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self.path}: {what}: {why}")

    def _unpack(self, code: str, position: int, what: str) -> Any:
        try:
            return struct.unpack_from("<" + code, self._data, position)[0]
        except (struct.error, OverflowError) as error:
            raise self._corrupt(what, f"lies at byte {position} of {self._size}; truncated file?") from error

    def _read_preamble(self) -> tuple[int, int]:
        if self._size < 24 or self._data[:4] != b"GGUF":
            raise self._corrupt("header", f"not a GGUF file ({self._size} bytes, starts with {self._data[:4]!r})")
        version = self._unpack("I", 4, "version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "big-endian files" if swapped in (1, 2, 3) else f"version {version}"
            raise UnsupportedModelError(
                f"{self.path}: GGUF {what} are not supported", hint="supported: versions 2 and 3"
            )
        num_tensors, num_keys = self._unpack("Q", 8, "tensor count"), self._unpack("Q", 16, "key count")
        if num_tensors > min(MAX_TENSORS, self._size // _MIN_TENSOR_BYTES):
            raise self._corrupt("tensor count", f"{num_tensors} tensors in a file of {self._size} bytes")
        if num_keys > min(MAX_KEYS, self._size // _MIN_KEY_BYTES):
            raise self._corrupt("key count", f"{num_keys} keys in a file of {self._size} bytes")
        return num_tensors, num_keys

    def _read_string(self, position: int, what: str, max_bytes: int) -> tuple[str, int]:
        """A string and the position after it."""
        length = self._unpack("Q", position, what)
        start = position + 8
        if length > max_bytes or length > self._size - start:
            raise self._corrupt(what, f"string of {length} bytes at byte {position} of {self._size}")
        try:
            return self._data[start : start + length].decode(), start + length
        except UnicodeDecodeError as error:
            raise self._corrupt(what, f"string at byte {position} is not UTF-8") from error

    def _read_fields(self, num_keys: int, position: int) -> int:
        """Locates all values; returns the position after them."""
        for number in range(num_keys):
            key, position = self._read_string(position, f"key {number}", MAX_NAME_BYTES)
            kind = self._unpack("I", position, key)
            if key in self.fields:
                raise self._corrupt(key, "stands twice")
            count = None
            position += 4
            if kind == _ARRAY:
                kind, count, position = self._array_head(key, position)
            self.fields[key] = GGUFField(kind, count, position)
            position = self._skip(key, kind, 1 if count is None else count, position, depth=1)
        return position

    def _array_head(self, key: str, position: int) -> tuple[int, int, int]:
        """Type and number of an array's elements, and the position of the first."""
        return self._unpack("I", position, key), self._unpack("Q", position + 4, key), position + 12

    def _skip(self, key: str, kind: int, count: int, position: int, depth: int) -> int:
        """The position after `count` values of one type, which are within the file."""
        if kind in _SCALARS:
            end = position + count * struct.calcsize("<" + _SCALARS[kind])
        elif kind == _STRING:
            end = self._skip_strings(key, count, position)
        elif kind == _ARRAY:
            end = self._skip_arrays(key, count, position, depth)
        else:
            raise self._corrupt(key, f"unknown value type {kind}")
        if end > self._size:
            raise self._corrupt(
                key, f"{count} values from byte {position} end after byte {self._size}; truncated file?"
            )
        return end

    def _skip_strings(self, key: str, count: int, position: int) -> int:
        if count > min(self._array_strings_left, (self._size - position) // 8):
            raise self._corrupt(key, f"{count} strings from byte {position} of {self._size}")
        self._array_strings_left -= count
        unpack, data = struct.Struct("<Q").unpack_from, self._data
        try:
            for _ in range(count):
                position += 8 + unpack(data, position)[0]
        except (struct.error, OverflowError) as error:
            raise self._corrupt(key, f"a string ends after byte {self._size}; truncated file?") from error
        return position

    def _skip_arrays(self, key: str, count: int, position: int, depth: int) -> int:
        if depth >= MAX_ARRAY_DEPTH or count > min(MAX_KEYS, (self._size - position) // 12):
            raise self._corrupt(key, f"{count} arrays in arrays {depth} deep")
        for _ in range(count):
            kind, inner_count, position = self._array_head(key, position)
            position = self._skip(key, kind, inner_count, position, depth + 1)
        return position

    def _decode_one(self, key: str, kind: int, position: int) -> tuple[Any, int]:
        """One value and the position after it."""
        if kind == _STRING:
            return self._read_string(position, key, self._size)
        if kind == _ARRAY:
            inner_kind, count, position = self._array_head(key, position)
            return self._decode_array(key, inner_kind, count, position)
        value = self._unpack(_SCALARS[kind], position, key)
        if kind == _BOOL:
            value = self._as_bool(key, value)
        elif kind == _FLOAT32:
            value = _shortest_decimal(value)
        return value, position + struct.calcsize("<" + _SCALARS[kind])

    def _decode_array(self, key: str, kind: int, count: int, position: int) -> tuple[list[Any], int]:
        if kind == _STRING:
            return self._decode_strings(key, count, position)
        if kind == _ARRAY:
            values = []
            for _ in range(count):
                value, position = self._decode_one(key, kind, position)
                values.append(value)
            return values, position
        code = f"<{count}{_SCALARS[kind]}"
        numbers = list(struct.unpack_from(code, self._data, position))
        if kind == _BOOL:
            numbers = [self._as_bool(key, number) for number in numbers]
        return numbers, position + struct.calcsize(code)

    def _decode_strings(self, key: str, count: int, position: int) -> tuple[list[str], int]:
        unpack, data, strings = struct.Struct("<Q").unpack_from, self._data, []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(data, position)[0]
                strings.append(data[start:position].decode())
        except UnicodeDecodeError as error:
            raise self._corrupt(key, f"string {len(strings)} is not UTF-8") from error
        return strings, position

    def _as_bool(self, key: str, number: int) -> bool:
        if number not in (0, 1):
            raise self._corrupt(key, f"a boolean of {number}")
        return bool(number)

    def _read_tensors(self, num_tensors: int, position: int) -> None:
        described = []
        for number in range(num_tensors):
            name, position = self._read_string(position, f"tensor {number}", MAX_NAME_BYTES)
            num_dimensions = self._unpack("I", position, name)
            if num_dimensions > MAX_DIMENSIONS:
                raise self._corrupt(f"tensor {name!r}", f"{num_dimensions} dimensions")
            sizes = [self._unpack("Q", position + 4 + 8 * index, name) for index in range(num_dimensions)]
            position += 4 + 8 * num_dimensions
            described.append((name, sizes, self._unpack("I", position, name), self._unpack("Q", position + 4, name)))
            position += 12
        alignment = self._alignment()
        data_start = position + -position % alignment
        for name, sizes, kind, offset in described:
            if name in self.tensors:
                raise self._corrupt(f"tensor {name!r}", "stands twice")
            if offset % alignment:
                raise self._corrupt(f"tensor {name!r}", f"offset {offset} is not a multiple of {alignment}")
            self.tensors[name] = self._tensor(name, sizes, kind, data_start + offset)

    def _alignment(self) -> int:
        alignment = self.value("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._corrupt("general.alignment", f"must be a power of two up to {MAX_ALIGNMENT}, got {alignment!r}")
        return alignment

    def _tensor(self, name: str, sizes: list[int], kind: int, offset: int) -> TensorEntry:
        if kind not in GGML_TYPES:
            raise UnsupportedModelError(f"{self.path}: tensor {name!r}: GGML type {kind} is not supported")
        dtype, block_values, block_bytes = GGML_TYPES[kind]
        if (sizes[0] if sizes else 1) % block_values:
            raise self._corrupt(f"tensor {name!r}", f"rows of {sizes[:1]} values in blocks of {block_values} ({dtype})")
        num_bytes = math.prod(sizes) // block_values * block_bytes
        if offset + num_bytes > self._size:
            raise self._corrupt(
                f"tensor {name!r}", f"bytes {offset} to {offset + num_bytes} of {self._size}; truncated file?"
            )
        return TensorEntry(name, self.path, dtype, tuple(reversed(sizes)), offset, num_bytes)


def gguf_parts(path: Path) -> list[Path]:
    """All files of a model that is split into "name-00001-of-00003.gguf"; the file itself where it is not.

    Raises:
        CheckpointNotFoundError: A part is missing.
    """
    match = re.fullmatch(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf", path.name)
    if not match:
        return [path]
    count = int(match["count"])
    parts = [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None or not parts:
        raise CheckpointNotFoundError(f"{path}: part {missing} of {count} is missing", hint="download all parts")
    return parts


def _shortest_decimal(value: float) -> float:
    """The number that was meant by a float32: 1e-05, not 9.999999747378752e-06."""
    stored = struct.pack("<f", value)
    candidates = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((number for number in candidates if struct.pack("<f", number) == stored), value)


def _map_file(path: Path) -> mmap.mmap:
    try:
        if not path.is_file():
            raise CheckpointNotFoundError(f"{path}: no such file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise CorruptCheckpointError(f"{path}: too short for a GGUF file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointNotFoundError(f"{path}: cannot be read ({error.strerror})") from error
