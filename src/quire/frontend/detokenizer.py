"""Token ids to text, a few at a time."""

import codecs
from collections.abc import Sequence, Set

from quire.frontend.pieces import Pieces
from quire.frontend.tokenizer import Tokenizer

_LONGEST_CHARACTER_BYTES = 4
_MAX_HELD_TOKENS = 16
"""Without pieces: tokens whose text may wait for the end of a character. Then it is given out as it is."""


class IncrementalDetokenizer:
    """The text of a sequence after its prompt, as it grows.

    What `append` and `flush` return, put together, is what `tokenizer.decode` makes of prompt and answer, less
    the part that the prompt makes alone. A character that is not complete is held back, also one that the prompt
    has begun. Time per token does not depend on the length of the text.

    Args:
        prompt_token_ids: Only its end is read.
        skip_special_tokens: Leave control tokens out.
        shown_special_tokens: Except those with these texts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        shown_special_tokens: Set[str] = frozenset(),
    ) -> None:
        pieces = tokenizer.pieces_showing(shown_special_tokens) if skip_special_tokens else tokenizer.pieces
        self._text: _ByteText | _WindowText
        if pieces is None:
            hidden = tokenizer.hidden_ids(shown_special_tokens) if skip_special_tokens else frozenset()
            self._text = _WindowText(tokenizer, prompt_token_ids, hidden)
        else:
            self._text = _ByteText(pieces, prompt_token_ids)

    def append(self, token_ids: Sequence[int]) -> str:
        """Adds tokens; returns the text that they complete."""
        return self._text.append(token_ids)

    def flush(self) -> str:
        """The rest, with U+FFFD for a character that stays incomplete. Nothing may be appended afterwards."""
        return self._text.flush()


class _ByteText:
    """For tokenizers whose tokens are bytes: a UTF-8 decoder that remembers at most three of them."""

    def __init__(self, pieces: Pieces, prompt_token_ids: Sequence[int]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for token_id in reversed(prompt_token_ids):
            tail = pieces[token_id] + tail
            if len(tail) >= _LONGEST_CHARACTER_BYTES:
                break
        self._decoder.decode(tail)
        self._strips_space = pieces.strips_first_space and not tail

    def append(self, token_ids: Sequence[int]) -> str:
        pieces = self._pieces
        text = self._decoder.decode(b"".join([pieces[token_id] for token_id in token_ids]))
        return self._without_first_space(text) if self._strips_space else text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def _without_first_space(self, text: str) -> str:
        if not text:
            return text
        self._strips_space = False
        return text.removeprefix(" ")


class _WindowText:
    """For other tokenizers: decodes the last tokens twice, without and with the new ones, and takes the difference."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], hidden_ids: Set[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden_ids = hidden_ids
        self._context = [token_id for token_id in prompt_token_ids[-_MAX_HELD_TOKENS:] if token_id not in hidden_ids]
        self._held: list[int] = []

    def append(self, token_ids: Sequence[int]) -> str:
        return "".join([self._append_one(token_id) for token_id in token_ids if token_id not in self._hidden_ids])

    def flush(self) -> str:
        text = self._new_text()
        self._context, self._held = self._held, []
        return text

    def _append_one(self, token_id: int) -> str:
        self._held.append(token_id)
        text = self._new_text()
        if len(self._held) < _MAX_HELD_TOKENS and (not text or text.endswith("\ufffd")):
            return ""
        self._context, self._held = self._held, []
        return text

    def _new_text(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._held)[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
