"""What bytes each token stands for."""

import json
from collections.abc import Callable, Mapping, Set
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend


class Pieces(dict[int, bytes]):
    """The bytes of each token id, found on first use. The text of a sequence is their concatenation.

    Ids outside the vocabulary, and those in `hidden`, stand for nothing.

    Attributes:
        strips_first_space: Whether a text loses the space that its first word is written with.
    """

    def __init__(self, find: Callable[[int], bytes], hidden: Set[int], *, strips_first_space: bool) -> None:
        super().__init__(dict.fromkeys(hidden, b""))
        self._find = find
        self.strips_first_space = strips_first_space

    def __missing__(self, token_id: int) -> bytes:
        piece = self[token_id] = self._find(token_id)
        return piece


def make_pieces(backend: Backend, added: Mapping[int, AddedToken], hidden: Set[int]) -> Pieces | None:
    """The pieces of a tokenizer, None for one whose tokens mean different text in different surroundings.

    Byte-level tokenizers write bytes as printable characters; SentencePiece ones write "▁" for a space and, with
    byte fallback, "<0xE4>" for a byte. In both a sequence of tokens is a sequence of bytes.
    """
    steps = _decoder_steps(backend)
    kinds = {step["type"] for step in steps}
    if kinds and kinds <= {"ByteLevel", "Fuse"} and "ByteLevel" in kinds:
        return Pieces(_byte_level_finder(backend, added), hidden, strips_first_space=False)
    if not kinds or not all(map(_is_sentencepiece_step, steps)) or not kinds & {"Replace", "Metaspace"}:
        return None
    strips = any(step["type"] == "Strip" or step.get("prepend_scheme", "never") != "never" for step in steps)
    finder = _sentencepiece_finder(backend, added, byte_fallback="ByteFallback" in kinds)
    return Pieces(finder, hidden, strips_first_space=strips)


def _decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    state = json.loads(backend.decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


def _is_sentencepiece_step(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) == ({"String": "▁"}, " ")
    if step["type"] == "Strip":
        return (step["content"], step["start"], step["stop"]) == (" ", 1, 0)
    return step["type"] in ("ByteFallback", "Fuse") or step.get("replacement") == "▁"


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write for the 256 bytes.

    Bytes that are printable in Latin-1 stand for themselves; the others take the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _byte_level_finder(backend: Backend, added: Mapping[int, AddedToken]) -> Callable[[int], bytes]:
    alphabet = byte_alphabet()

    def find(token_id: int) -> bytes:
        if token_id in added:
            return added[token_id].content.encode()
        token = backend.id_to_token(token_id) or ""
        try:
            return bytes([alphabet[character] for character in token])
        except KeyError:
            return token.encode()

    return find


def _sentencepiece_finder(
    backend: Backend, added: Mapping[int, AddedToken], *, byte_fallback: bool
) -> Callable[[int], bytes]:
    def find(token_id: int) -> bytes:
        if token_id in added and added[token_id].special:
            return added[token_id].content.encode()
        token = backend.id_to_token(token_id) or ""
        if byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                return token.encode()
        return token.replace("▁", " ").encode()

    return find
