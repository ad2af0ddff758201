"""safetensors headers: every offset, size and name is checked before it is used."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire.checkpoint.safetensors_index import index_safetensors, read_safetensors_header
from quire.errors import CheckpointNotFoundError, CorruptCheckpointError, TensorMismatchError, UnsupportedModelError

Writer = Callable[..., bytes]

TWO = {"a": ("F32", [2, 3], bytes(24)), "b": ("BF16", [4], bytes(8))}


def test_reads_places_and_shapes(tmp_path: Path, safetensors_bytes: Writer) -> None:
    path = tmp_path / "model.safetensors"
    content = safetensors_bytes(TWO)
    path.write_bytes(content)
    entries = read_safetensors_header(path)
    assert set(entries) == {"a", "b"}
    assert (entries["a"].dtype, entries["a"].shape, entries["a"].num_bytes) == ("F32", (2, 3), 24)
    assert entries["b"].offset == len(content) - 8
    assert entries["b"].file == path


def test_scalars_and_empty_tensors_are_fine(tmp_path: Path, safetensors_bytes: Writer) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"s": ("F32", [], bytes(4)), "e": ("F32", [0, 7], b"")}))
    assert read_safetensors_header(path)["e"].num_bytes == 0


def spoil(name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (spoil("b", data_offsets=[24, 33]), "truncated"),
        (spoil("b", data_offsets=[24, 2**70]), "malformed"),
        (spoil("b", data_offsets=[32, 24]), "truncated"),
        (spoil("b", data_offsets=[-8, 0]), "malformed"),
        (spoil("b", data_offsets=[24.0, 32.0]), "malformed"),
        (spoil("b", data_offsets=[24]), "truncated"),
        (spoil("b", data_offsets=None), "malformed"),
        (spoil("b", data_offsets=[0, 8]), "overlaps"),
        (spoil("b", data_offsets=[16, 24]), "overlaps"),
        (spoil("b", shape=[5]), "takes 10"),
        (spoil("b", shape=[2**40, 2**40]), "takes"),
        (spoil("b", shape=[-4]), "malformed"),
        (spoil("b", shape=[True, 4]), "malformed"),
        (spoil("b", shape=[1] * 17 + [4]), "malformed"),
        (spoil("b", shape="4"), "malformed"),
        (spoil("b", dtype=7), "malformed"),
        (lambda header: header.update(b=[1, 2]), "not an object"),
        (lambda header: header.pop("a"), "gap"),
        (lambda header: header.pop("b"), "after the last tensor"),
    ],
)
def test_headers_that_contradict_themselves(
    tmp_path: Path, safetensors_bytes: Writer, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(TWO, change))
    with pytest.raises(CorruptCheckpointError, match=named) as caught:
        read_safetensors_header(path)
    assert str(path) in str(caught.value)


def test_an_unknown_number_format_is_named(tmp_path: Path, safetensors_bytes: Writer) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(TWO, spoil("b", dtype="F4")))
    with pytest.raises(UnsupportedModelError, match=r"'b'.*F4"):
        read_safetensors_header(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 0),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{\xff",
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 17) + b'{"a":{},  "a":{}}',
    ],
    ids=["empty", "short", "huge", "over", "cut", "zero", "list", "utf8", "text", "deep", "twice"],
)
def test_no_header_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        read_safetensors_header(path)


def test_the_header_cap_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safetensors_bytes: Writer) -> None:
    path = tmp_path / "model.safetensors"
    content = safetensors_bytes(TWO)
    path.write_bytes(content)
    (length,) = struct.unpack_from("<Q", content)
    monkeypatch.setattr("quire.checkpoint.safetensors_index.MAX_HEADER_BYTES", length)
    read_safetensors_header(path)
    monkeypatch.setattr("quire.checkpoint.safetensors_index.MAX_HEADER_BYTES", length - 1)
    with pytest.raises(CorruptCheckpointError, match=f"header of {length} bytes"):
        read_safetensors_header(path)


def test_every_truncation_is_noticed(tmp_path: Path, safetensors_bytes: Writer) -> None:
    path = tmp_path / "model.safetensors"
    content = safetensors_bytes(TWO)
    for length in [*range(0, len(content), 5), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CorruptCheckpointError):
            read_safetensors_header(path)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointNotFoundError):
        read_safetensors_header(tmp_path / "model.safetensors")


def write_shards(folder: Path, writer: Writer, weight_map: dict[str, Any]) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(writer({"a": TWO["a"]}))
    (folder / "model-00002-of-00002.safetensors").write_bytes(writer({"b": TWO["b"]}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


GOOD_MAP = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def test_shards_by_their_index(tmp_path: Path, safetensors_bytes: Writer) -> None:
    write_shards(tmp_path, safetensors_bytes, GOOD_MAP)
    entries = index_safetensors(tmp_path)
    assert {name: entry.file.name for name, entry in entries.items()} == GOOD_MAP


def test_shards_without_an_index(tmp_path: Path, safetensors_bytes: Writer) -> None:
    write_shards(tmp_path, safetensors_bytes, GOOD_MAP)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert set(index_safetensors(tmp_path)) == {"a", "b"}
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(safetensors_bytes({"c": TWO["b"]}))
    with pytest.raises(CheckpointNotFoundError, match="shards"):
        index_safetensors(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "folder/model.safetensors",
        "..\\secret.safetensors",
        "..safetensors",
        "model.bin",
        "model.safetensors\x00.safetensors",
        "",
        7,
    ],
)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, safetensors_bytes: Writer, name: Any) -> None:
    (tmp_path / "secret.safetensors").write_bytes(safetensors_bytes({"a": TWO["a"]}))
    folder = tmp_path / "model"
    folder.mkdir()
    write_shards(folder, safetensors_bytes, GOOD_MAP | {"a": name})
    with pytest.raises(CorruptCheckpointError, match="not the name of a safetensors file"):
        index_safetensors(folder)


def test_an_index_that_promises_too_much(tmp_path: Path, safetensors_bytes: Writer) -> None:
    write_shards(tmp_path, safetensors_bytes, GOOD_MAP | {"c": "model-00002-of-00002.safetensors"})
    with pytest.raises(TensorMismatchError, match=r"model-00002-of-00002\.safetensors: tensor 'c'"):
        index_safetensors(tmp_path)
    write_shards(tmp_path, safetensors_bytes, GOOD_MAP | {"c": "model-00003-of-00003.safetensors"})
    with pytest.raises(CheckpointNotFoundError, match=r"model-00003-of-00003\.safetensors"):
        index_safetensors(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map(tmp_path: Path, safetensors_bytes: Writer, weight_map: Any) -> None:
    write_shards(tmp_path, safetensors_bytes, weight_map)
    with pytest.raises(CorruptCheckpointError, match="weight_map"):
        index_safetensors(tmp_path)


def test_the_same_tensor_in_two_files(tmp_path: Path, safetensors_bytes: Writer) -> None:
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(safetensors_bytes({"a": TWO["a"]}))
    with pytest.raises(CorruptCheckpointError, match="also stands in"):
        index_safetensors(tmp_path)


def test_other_files_beside_the_model_are_left_alone(tmp_path: Path, safetensors_bytes: Writer) -> None:
    (tmp_path / "weights.safetensors").write_bytes(safetensors_bytes({"a": TWO["a"]}))
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes({"b": TWO["b"]}))
    (tmp_path / "consolidated.safetensors").write_bytes(safetensors_bytes({"c": TWO["b"]}))
    assert set(index_safetensors(tmp_path)) == {"a"}
    (tmp_path / "more.safetensors").write_bytes(safetensors_bytes({"b": TWO["b"]}))
    with pytest.raises(CheckpointNotFoundError, match="found: more"):
        index_safetensors(tmp_path)
