"""Spoiled files: whatever the bytes, a typed error comes out, and soon."""

import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.checkpoint.gguf_file import GGUFFile
from quire.checkpoint.gguf_metadata import (
    gguf_architecture,
    gguf_chat_template,
    gguf_generation_defaults,
    gguf_tokenizer,
)
from quire.checkpoint.safetensors_index import read_safetensors_header
from quire.errors import CheckpointError

EXTREMES = [0, 1, 2, 7, 8, 9, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]

place = st.integers(0, 2**16)
change = st.one_of(
    st.tuples(st.just("bytes"), place, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("bytes"), place, st.sampled_from(EXTREMES).map(lambda number: struct.pack("<Q", number))),
    st.tuples(st.just("cut"), place, st.just(b"")),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("delete"), place, st.binary(min_size=1, max_size=16)),
)
changes = st.lists(change, min_size=1, max_size=4)


def spoil(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, data in changes:
        at = place % (len(content) or 1)
        if kind == "bytes":
            content = content[:at] + data + content[at + len(data) :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + data + content[at:]
        else:
            content = content[:at] + content[at + len(data) :]
    return content


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model"


@pytest.fixture(scope="module")
def gguf_content(small_gguf: Callable[[], Any]) -> bytes:
    builder = small_gguf()
    builder.tensors = []
    builder.set("nested", (builder.ARRAY, (builder.ARRAY, builder.U8)), [[1], [2, 3]])
    builder.set("general.sampling.temp", builder.F32, 0.5)
    builder.tensor("token_embd.weight", (8, 32), 8, bytes(8 * 34))
    return builder.build()


def read_all_of_gguf(path: Path) -> None:
    gguf = GGUFFile(path)
    size = path.stat().st_size
    assert all(0 <= entry.offset <= entry.offset + entry.num_bytes <= size for entry in gguf.tensors.values())
    readers: list[Callable[[], Any]] = [
        lambda: gguf_architecture(gguf, gguf.tensors),
        lambda: gguf_chat_template(gguf),
        lambda: gguf_generation_defaults(gguf),
        gguf_tokenizer(gguf).vocabulary,
        *(lambda key=key: gguf.value(key) for key in gguf.fields),
    ]
    for read in readers:
        try:
            read()
        except CheckpointError as error:
            assert str(path) in str(error)


@settings(max_examples=100, deadline=timedelta(seconds=1))
@given(changes=changes)
def test_spoiled_gguf(path: Path, gguf_content: bytes, changes: list[tuple[str, int, bytes]]) -> None:
    path.write_bytes(spoil(gguf_content, changes))
    try:
        read_all_of_gguf(path)
    except CheckpointError as error:
        assert str(path) in str(error)


@settings(max_examples=100, deadline=timedelta(seconds=1))
@given(changes=changes)
def test_spoiled_safetensors(
    path: Path, safetensors_bytes: Callable[..., bytes], changes: list[tuple[str, int, bytes]]
) -> None:
    tensors = {"a": ("F32", [2, 3], bytes(24)), "b.weight": ("BF16", [4], bytes(8)), "c": ("U8", [0], b"")}
    content = spoil(safetensors_bytes(tensors), changes)
    path.write_bytes(content)
    try:
        entries = read_safetensors_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert all(0 <= entry.offset <= entry.offset + entry.num_bytes <= len(content) for entry in entries.values())
