"""The GGUF container: what is written is read, and every count and offset is checked."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire.checkpoint.gguf_file import GGUFFile, gguf_parts
from quire.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedModelError

Builder = Any


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], GGUFFile]:
    def open_bytes(content: bytes) -> GGUFFile:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return GGUFFile(path)

    return open_bytes


def test_values_of_every_kind(opened: Callable[[bytes], GGUFFile], gguf_builder: Builder) -> None:
    b = gguf_builder
    values = {
        "u8": (b.U8, 255),
        "i8": (b.I8, -128),
        "u16": (b.U16, 65535),
        "i16": (b.I16, -32768),
        "u32": (b.U32, 2**32 - 1),
        "i32": (b.I32, -(2**31)),
        "f32": (b.F32, 0.5),
        "bool": (b.BOOL, True),
        "text": (b.STRING, "grüße 👋"),
        "u64": (b.U64, 2**64 - 1),
        "i64": (b.I64, -(2**63)),
        "f64": (b.F64, 1e-300),
        "numbers": ((b.ARRAY, b.I32), [1, -2, 3]),
        "bools": ((b.ARRAY, b.BOOL), [True, False]),
        "texts": ((b.ARRAY, b.STRING), ["", "a", "é"]),
        "empty": ((b.ARRAY, b.F32), []),
        "nested": ((b.ARRAY, (b.ARRAY, b.U8)), [[1, 2], [], [3]]),
        "texts in arrays": ((b.ARRAY, (b.ARRAY, b.STRING)), [["x"], ["y", "z"]]),
    }
    builder = gguf_builder()
    for key, (kind, value) in values.items():
        builder.set(key, kind, value)
    file = opened(builder.build())
    assert {key: file.value(key) for key in file.fields} == {key: value for key, (_, value) in values.items()}
    assert file.value("absent", 7) == 7
    assert (file.length("texts"), file.length("u8"), file.length("absent")) == (3, 0, 0)


def test_a_float32_is_the_decimal_that_was_meant(opened: Callable[[bytes], GGUFFile], gguf_builder: Builder) -> None:
    numbers = [1e-5, 0.1, 500_000.0, 3.1415927, float("inf"), 1.17e-38, 0.0]
    builder = gguf_builder()
    for index, number in enumerate(numbers):
        builder.set(str(index), builder.F32, number)
    file = opened(builder.build())
    assert [file.value(str(index)) for index in range(len(numbers))] == numbers


def test_tensors_are_row_major_and_absolute(opened: Callable[[bytes], GGUFFile], gguf_builder: Builder) -> None:
    content = gguf_builder().tensor("a", (2, 3), 0, bytes(24)).tensor("b", (2, 64), 8, bytes(136)).build()
    tensors = opened(content).tensors
    assert (tensors["a"].shape, tensors["a"].dtype, tensors["a"].num_bytes) == ((2, 3), "F32", 24)
    assert (tensors["b"].shape, tensors["b"].dtype) == ((2, 64), "Q8_0")
    assert tensors["b"].offset + tensors["b"].num_bytes == len(content)


def test_the_alignment_of_the_file_counts(opened: Callable[[bytes], GGUFFile], gguf_builder: Builder) -> None:
    builder = gguf_builder().set("general.alignment", gguf_builder.U32, 256)
    builder.alignment = 256
    builder.tensor("a", (1,), 0, bytes(4)).tensor("b", (1,), 0, bytes(4))
    tensors = opened(builder.build()).tensors
    assert tensors["a"].offset % 256 == 0
    assert tensors["b"].offset == tensors["a"].offset + 256


@pytest.mark.parametrize("alignment", [0, 3, 2**21, 2**31])
def test_an_absurd_alignment(opened: Callable[[bytes], GGUFFile], gguf_builder: Builder, alignment: int) -> None:
    builder = gguf_builder().set("general.alignment", gguf_builder.U32, alignment)
    with pytest.raises(CorruptCheckpointError, match=r"general\.alignment"):
        opened(builder.build())


def test_every_truncation_is_noticed(tmp_path: Path, small_gguf: Callable[[], Builder]) -> None:
    path = tmp_path / "model.gguf"
    content = small_gguf().build()
    for length in [*range(0, len(content), 11), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CorruptCheckpointError, match=r"model\.gguf"):
            GGUFFile(path)


def header(num_tensors: int, num_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + rest


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(name: bytes, sizes: list[int], kind: int, offset: int) -> bytes:
    sizes_bytes = b"".join(struct.pack("<Q", size) for size in sizes)
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(sizes))
    return head + sizes_bytes + struct.pack("<IQ", kind, offset)


PAD = bytes(4096)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (header(2**63, 0, PAD), "tensor count"),
        (header(500, 0, PAD), "tensor count|truncated|tensor"),
        (header(0, 2**63, PAD), "key count"),
        (header(0, 1, struct.pack("<Q", 2**64 - 1) + PAD), "key 0"),
        (header(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + PAD), "UTF-8"),
        (header(0, 1, key(b"k", 13, PAD)), "unknown value type 13"),
        (header(0, 1, key(b"k", 8, struct.pack("<Q", 2**40) + PAD)), "k: "),
        (header(0, 1, key(b"k", 9, struct.pack("<IQ", 4, 2**62) + PAD)), "k: .* values"),
        (header(0, 1, key(b"k", 9, struct.pack("<IQ", 8, 2**62) + PAD)), "k: .* strings"),
        (header(0, 1, key(b"k", 9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 2**63) + PAD)), "k: "),
        (header(0, 1, key(b"k", 9, struct.pack("<IQ", 9, 2**62) + PAD)), "arrays"),
        (header(0, 1, key(b"k", 9, struct.pack("<IQ", 9, 1) * 8 + PAD)), "deep"),
        (header(0, 2, key(b"k", 0, b"\1") + key(b"k", 0, b"\1") + PAD), "stands twice"),
        (header(2, 0, tensor(b"t", [1], 0, 0) * 2 + PAD), "stands twice"),
        (header(1, 0, tensor(b"t", [1] * 5, 0, 0) + PAD), "5 dimensions"),
        (header(1, 0, tensor(b"t", [2**63, 2**63], 0, 0) + PAD), "truncated"),
        (header(1, 0, tensor(b"t", [1024], 0, 2**63) + PAD), "truncated"),
        (header(1, 0, tensor(b"t", [1024], 0, 16) + PAD), "not a multiple"),
        (header(1, 0, tensor(b"t", [1024], 0, 64) + PAD), "truncated"),
        (header(1, 0, tensor(b"t", [33], 8, 0) + PAD), "blocks of 32"),
        (header(1, 0, tensor(b"t", [], 8, 0) + PAD), "blocks of 32"),
    ],
)
def test_malicious_headers(opened: Callable[[bytes], GGUFFile], content: bytes, named: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=named) as caught:
        opened(content)
    assert "model.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (header(0, 0, PAD, version=1), "version 1"),
        (header(0, 0, PAD, version=4), "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + PAD, "big-endian"),
        (header(1, 0, tensor(b"t", [32], 5, 0) + PAD), "GGML type 5"),
    ],
)
def test_what_we_do_not_read(opened: Callable[[bytes], GGUFFile], content: bytes, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        opened(content)


def test_a_string_that_is_not_text_matters_only_when_it_is_read(
    opened: Callable[[bytes], GGUFFile], gguf_builder: Builder
) -> None:
    builder = gguf_builder().set("author", gguf_builder.STRING, b"\xff")
    builder.set("names", (gguf_builder.ARRAY, gguf_builder.STRING), ["fine", b"\xff"])
    builder.set("flags", (gguf_builder.ARRAY, gguf_builder.U8), [2]).set("name", gguf_builder.STRING, "Tiny")
    file = opened(builder.build())
    assert file.value("name") == "Tiny"
    for name in ("author", "names"):
        with pytest.raises(CorruptCheckpointError, match=f"{name}.*UTF-8"):
            file.value(name)


def test_the_strings_of_all_arrays_are_counted_together(
    opened: Callable[[bytes], GGUFFile], gguf_builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = gguf_builder()
    for key in "ab":
        builder.set(key, (builder.ARRAY, builder.STRING), ["x", "y", "z"])
    monkeypatch.setattr("quire.checkpoint.gguf_file.MAX_ARRAY_STRINGS", 6)
    opened(builder.build())
    monkeypatch.setattr("quire.checkpoint.gguf_file.MAX_ARRAY_STRINGS", 5)
    with pytest.raises(CorruptCheckpointError, match="b: 3 strings"):
        opened(builder.build())


def test_a_boolean_is_zero_or_one(opened: Callable[[bytes], GGUFFile]) -> None:
    file = opened(header(0, 1, key(b"flag", 7, b"\2") + PAD))
    with pytest.raises(CorruptCheckpointError, match="flag"):
        file.value("flag")


def test_other_files(opened: Callable[[bytes], GGUFFile], tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"PK\3\4" + PAD):
        with pytest.raises(CorruptCheckpointError, match=r"model\.gguf"):
            opened(content)
    with pytest.raises(CheckpointNotFoundError):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointNotFoundError):
        GGUFFile(tmp_path)


def test_parts_of_a_split_model(tmp_path: Path) -> None:
    single = tmp_path / "model.gguf"
    assert gguf_parts(single) == [single]
    parts = [tmp_path / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for part in parts[:2]:
        part.touch()
    with pytest.raises(CheckpointNotFoundError, match="m-00003-of-00003"):
        gguf_parts(parts[0])
    parts[2].touch()
    assert gguf_parts(parts[0]) == parts
    with pytest.raises(CheckpointNotFoundError):
        gguf_parts(tmp_path / "m-00001-of-00000.gguf")
