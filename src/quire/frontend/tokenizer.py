"""Text to token ids and back, over the `tokenizers` library."""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from quire.checkpoint.tokenizer_source import TokenizerSource
from quire.errors import CorruptCheckpointError, InvalidRequestError
from quire.frontend.control_tokens import BREAK, ControlTokens
from quire.frontend.gguf_tokenizer import build_gguf_tokenizer, starts_with_bos
from quire.frontend.pieces import Pieces, make_pieces

_MAX_KEPT_PIECES = 16
"""Sets of shown control tokens that are remembered; the formats of answers need one or two."""

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A tokenizer with a strict line between control tokens and text.

    Control tokens are those that the tokenizer's files mark as special (`<|im_end|>`). `encode` recognises them
    unless told not to; `encode_broken` recognises all but those with a `BREAK` inside, which is how a chat
    template's control tokens work while the same characters typed by a user stay text. Other added tokens
    (`<think>` in some models) are ordinary vocabulary and recognised everywhere.

    Args:
        backend: The library's tokenizer. Modified: truncation and padding are turned off.
        named_tokens: Texts of bos_token, eos_token and so on, for chat templates.
        eos_token_ids: Tokens that end an answer.
        starts_with_bos: Whether a prompt begins with bos; None leaves it to the backend's post-processor.
        ends_with_eos: The same for the end of a prompt.

    Attributes:
        special_tokens: Texts of the control tokens.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        named_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Iterable[int] = (),
        starts_with_bos: bool | None = None,
        ends_with_eos: bool | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.named_tokens = dict(named_tokens or {})
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = self._named_id("bos_token")
        named_eos = self._named_id("eos_token")
        self.eos_token_ids = tuple(dict.fromkeys([*eos_token_ids, *([] if named_eos is None else [named_eos])]))
        self._added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        self._control = {token.content: token_id for token_id, token in self._added.items() if token.special}
        self._control_ids = frozenset(self._control.values())
        self.special_tokens = frozenset(self._control)
        self.control_tokens = ControlTokens(self._control)
        # Then other characters than its own may become a control token, and the library must not look for them.
        self._normalizes_control = backend.normalizer is not None and any(
            token.special and token.normalized for token in self._added.values()
        )
        self._plain = _copy_without_control(backend, self._added)
        self._plain_inside = _copy_for_inside(self._plain, self._added)
        self._prefix, self._suffix = _find_frame(backend)
        self._apply_frame(starts_with_bos, ends_with_eos, named_eos)
        self.pieces: Pieces | None = make_pieces(backend, self._added, frozenset())
        self.visible_pieces: Pieces | None = make_pieces(backend, self._added, self._control_ids)
        self._pieces_by_shown: dict[Set[str], Pieces | None] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
            text: Any text.
            add_special_tokens: Put bos in front (and eos at the end) where the model is used to it. A text that
                itself begins with bos gets no second one.
            parse_special: Read the texts of control tokens as those tokens. False for text from a user: then no
                control token comes out of it.

        Raises:
            InvalidRequestError: A text that is not valid Unicode.
        """
        ids = _encode(self.backend, text) if parse_special else self._encode_plain(self._plain, text)
        return self.add_special_tokens(ids) if add_special_tokens else ids

    def add_special_tokens(self, token_ids: list[int]) -> list[int]:
        """`token_ids` with bos in front (and eos at the end) where the model is used to it; no second bos."""
        prefix = [] if self._prefix and token_ids[: len(self._prefix)] == self._prefix else self._prefix
        return [*prefix, *token_ids, *self._suffix]

    def encode_broken(self, text: str) -> list[int]:
        """Token ids of a text in which the control tokens that a user typed are broken by `BREAK`.

        The same as `encode` of the text without breaks, except that the broken ones stay text. No bos is added.

        Raises:
            InvalidRequestError: A text that is not valid Unicode.
        """
        if BREAK not in text and not self._normalizes_control:
            return _encode(self.backend, text)
        ids: list[int] = []
        start = 0
        strip_left = False
        for match in self.control_tokens.find(text):
            token_id = self._control[match.group()]
            token = self._added[token_id]
            if token.single_word and _inside_word(text, match.start(), match.end()):
                continue
            between = text[start : match.start()]
            ids += self._encode_between(between, start, strip_left=strip_left, strip_right=token.lstrip)
            ids.append(token_id)
            start, strip_left = match.end(), token.rstrip
        ids += self._encode_between(text[start:], start, strip_left=strip_left, strip_right=False)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`. Bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        pieces = self.visible_pieces if skip_special_tokens else self.pieces
        if pieces is None:
            return str(self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        text = b"".join([pieces[token_id] for token_id in token_ids]).decode("utf-8", "replace")
        return text[1:] if pieces.strips_first_space and text.startswith(" ") else text

    def token_text(self, token_id: int) -> str:
        """One token as text, control tokens and leading spaces included. Half a character is U+FFFD."""
        if self.pieces is None:
            return str(self.backend.decode([token_id], skip_special_tokens=False))
        return self.pieces[token_id].decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """One token as the UTF-8 bytes it stands for, which may be a part of a character."""
        return self.token_text(token_id).encode() if self.pieces is None else self.pieces[token_id]

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this text in the vocabulary, None if there is none."""
        return self.backend.token_to_id(text)

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token."""
        return token_id in self._control_ids

    @property
    def added_tokens(self) -> dict[str, int]:
        """The ids of the tokens that were added to the model's own vocabulary, control tokens among them."""
        return {token.content: token_id for token_id, token in self._added.items()}

    def hidden_ids(self, shown: Set[str]) -> frozenset[int]:
        """The control tokens other than `shown`."""
        return frozenset(token_id for text, token_id in self._control.items() if text not in shown)

    def pieces_showing(self, shown: Set[str]) -> Pieces | None:
        """As `visible_pieces`, but with the control tokens `shown`."""
        if not shown:
            return self.visible_pieces
        if shown not in self._pieces_by_shown:
            if len(self._pieces_by_shown) >= _MAX_KEPT_PIECES:
                self._pieces_by_shown.clear()
            self._pieces_by_shown[shown] = make_pieces(self.backend, self._added, self.hidden_ids(shown))
        return self._pieces_by_shown[shown]

    def _encode_between(self, text: str, start: int, *, strip_left: bool, strip_right: bool) -> list[int]:
        text = text.replace(BREAK, "")
        text = text.lstrip() if strip_left else text
        text = text.rstrip() if strip_right else text
        return self._encode_plain(self._plain if start == 0 else self._plain_inside, text) if text else []

    def _encode_plain(self, backend: Backend, text: str) -> list[int]:
        """Encodes with the control tokens off. Should the model's own merges form one, it is cut in two."""
        ids = _encode(backend, text)
        if self._control_ids.isdisjoint(ids):
            return ids
        encoding = backend.encode(text, add_special_tokens=False)
        index = next(i for i, token_id in enumerate(ids) if token_id in self._control_ids)
        start, end = encoding.offsets[index]
        if end - start < 2:
            shown = text[start:end]
            raise InvalidRequestError(f"the text holds {shown!r}, which this model can only read as a control token")
        head = self._encode_plain(backend, text[: start + 1])
        return head + self._encode_plain(self._plain_inside, text[start + 1 :])

    def _named_id(self, name: str) -> int | None:
        text = self.named_tokens.get(name)
        return None if text is None else self.backend.token_to_id(text)

    def _apply_frame(self, starts_with_bos: bool | None, ends_with_eos: bool | None, eos: int | None) -> None:
        bos = self.bos_token_id
        if starts_with_bos is not None and bos is not None:
            rest = self._prefix[1:] if self._prefix[:1] == [bos] else self._prefix
            self._prefix = [bos, *rest] if starts_with_bos else rest
        if ends_with_eos is not None and eos is not None:
            rest = self._suffix[:-1] if self._suffix[-1:] == [eos] else self._suffix
            self._suffix = [*rest, eos] if ends_with_eos else rest


def load_tokenizer(source: TokenizerSource) -> Tokenizer:
    """Builds the tokenizer that a checkpoint comes with.

    Raises:
        CorruptCheckpointError: Its files do not parse or contradict each other.
        UnsupportedModelError: A kind of tokenizer that quire does not know.
    """
    return _load_gguf(source) if source.kind == "gguf" else _load_json(source)


def _load_json(source: TokenizerSource) -> Tokenizer:
    try:
        backend = Backend.from_file(str(source.path))
    except Exception as error:  # the library raises plain Exception
        raise CorruptCheckpointError(f"{source.path.name}: the tokenizer cannot be read: {error}") from error
    config = source.config
    _add_configured_tokens(backend, config.get("added_tokens_decoder"), source.path.name)
    named = {name: text for name in _NAMED_TOKENS if (text := _token_content(config.get(name))) is not None}
    return Tokenizer(
        backend,
        named_tokens=named,
        starts_with_bos=_flag(config.get("add_bos_token")),
        ends_with_eos=_flag(config.get("add_eos_token")),
    )


def _load_gguf(source: TokenizerSource) -> Tokenizer:
    vocabulary = source.vocabulary()
    backend = build_gguf_tokenizer(vocabulary, source=source.path.name)
    ids = {
        "bos_token": vocabulary.bos_token_id,
        "eos_token": vocabulary.eos_token_id,
        "unk_token": vocabulary.unknown_token_id,
        "pad_token": vocabulary.padding_token_id,
    }
    return Tokenizer(
        backend,
        named_tokens={name: vocabulary.tokens[token_id] for name, token_id in ids.items() if token_id is not None},
        eos_token_ids=[i for i in (vocabulary.eos_token_id, vocabulary.eot_token_id) if i is not None],
        starts_with_bos=starts_with_bos(vocabulary),
        ends_with_eos=vocabulary.add_eos_token,
    )


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _token_content(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _add_configured_tokens(backend: Backend, configured: Any, source: str) -> None:
    """Adds the tokens that tokenizer_config.json has and tokenizer.json has not."""
    if not isinstance(configured, Mapping):
        return
    by_id = {int(key): value for key, value in configured.items() if str(key).isdigit() and isinstance(value, Mapping)}
    for token_id, value in sorted(by_id.items()):
        content = _token_content(value)
        if not content or backend.token_to_id(content) is not None:
            continue
        flags = {key: value.get(key) is True for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        backend.add_tokens([AddedToken(content, **flags)])
        if backend.token_to_id(content) != token_id:
            raise CorruptCheckpointError(
                f"tokenizer_config.json gives {content!r} the id {token_id}, "
                f"but after the tokens of {source} it would be {backend.token_to_id(content)}"
            )


def _encode(backend: Backend, text: str) -> list[int]:
    try:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    except TypeError as error:  # what the library says of half a surrogate pair
        raise InvalidRequestError("the text is not valid Unicode: it holds half of a surrogate pair") from error
    return ids


def _inside_word(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return any(character.isalnum() or character == "_" for character in before + after)


def _copy_without_control(backend: Backend, added: Mapping[int, AddedToken]) -> Backend:
    """A tokenizer on the same model that reads control tokens as text."""
    copy = Backend(backend.model)
    copy.normalizer = backend.normalizer
    copy.pre_tokenizer = backend.pre_tokenizer
    copy.add_tokens([added[token_id] for token_id in sorted(added)])
    if copy.get_added_tokens_decoder().keys() != added.keys():
        copy = Backend.from_str(backend.to_str())
    copy.encode_special_tokens = True
    return copy


def _copy_for_inside(plain: Backend, added: Mapping[int, AddedToken]) -> Backend:
    """`plain` for text that does not begin the prompt.

    Some tokenizers put a space before the first word of a prompt only; in a piece cut from the middle they
    would take its first word for that.
    """
    state = plain.pre_tokenizer.__getstate__() if plain.pre_tokenizer is not None else b""
    if b'"prepend_scheme":"first"' not in state:
        return plain
    never = state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"')
    empty_model = {"type": "BPE", "vocab": {}, "merges": []}
    carrier = Backend.from_str(json.dumps({"pre_tokenizer": json.loads(never), "model": empty_model}))
    copy = _copy_without_control(plain, added)
    copy.pre_tokenizer = carrier.pre_tokenizer
    return copy


def _find_frame(backend: Backend) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and after a text."""
    bare: list[int] = backend.encode("a", add_special_tokens=False).ids
    framed: list[int] = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return [], []
