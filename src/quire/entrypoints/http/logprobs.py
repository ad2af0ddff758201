"""Log-probabilities in the two shapes of the API."""

from collections.abc import Mapping, Sequence

from quire.entrypoints.http.answer_bodies import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from quire.types.outputs import Logprob

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""

Position = Mapping[int, Logprob]


class TokenNames:
    """How tokens are written in an answer: as text, or as "token_id:17" where the request wants that."""

    def __init__(self, as_token_ids: bool) -> None:
        self._as_token_ids = as_token_ids

    def name(self, token_id: int, logprob: Logprob) -> str:
        """The token as it is written."""
        return f"token_id:{token_id}" if self._as_token_ids else logprob.decoded_token or ""


def finite(value: float) -> float:
    """A number that JSON can say."""
    return max(value, LOWEST)


def chat_logprobs(
    token_ids: Sequence[int], positions: Sequence[Position], num_top: int, names: TokenNames
) -> ChatLogprobs:
    """The shape of chat. `num_top` of -1 lists all alternatives there are."""
    content = []
    for token_id, position in zip(token_ids, positions, strict=True):
        entry = position[token_id]
        token = names.name(token_id, entry)
        top = [
            TopLogprob(text := names.name(other, logprob), finite(logprob.logprob), list(text.encode()))
            for other, logprob in most_likely(position, num_top)
        ]
        content.append(TokenLogprob(token, finite(entry.logprob), list(token.encode()), top))
    return ChatLogprobs(content)


def most_likely(position: Position, num_top: int) -> list[tuple[int, Logprob]]:
    """The `num_top` best entries of a position in falling order; all of them for -1."""
    if num_top == 0:
        return []
    ranked = sorted(position.items(), key=lambda item: -item[1].logprob)
    return ranked if num_top < 0 else ranked[:num_top]


class CompletionLogprobsBuilder:
    """The shape of completion, piece by piece: text offsets run on from one piece to the next."""

    def __init__(self, num_top: int, names: TokenNames) -> None:
        self._num_top = num_top
        self._names = names
        self._offset = 0

    def build(
        self, token_ids: Sequence[int], positions: Sequence[Position | None], first_text: str = ""
    ) -> CompletionLogprobs:
        """The next piece. `first_text` is the text of a first token that has no entry, as a prompt's has none."""
        piece = CompletionLogprobs([], [], [], [])
        for token_id, position in zip(token_ids, positions, strict=True):
            piece.text_offset.append(self._offset)
            if position is None:
                unscored = Logprob(0.0, None, first_text)
                piece.tokens.append(self._names.name(token_id, unscored))
                piece.token_logprobs.append(None)
                piece.top_logprobs.append(None)
                self._offset += len(first_text)
                continue
            entry = position[token_id]
            piece.tokens.append(self._names.name(token_id, entry))
            piece.token_logprobs.append(finite(entry.logprob))
            piece.top_logprobs.append(self._alternatives(token_id, position))
            self._offset += len(entry.decoded_token or "")
        return piece

    def _alternatives(self, token_id: int, position: Position) -> dict[str, float]:
        """The best `num_top`, and the token itself if it is not among them."""
        listed = dict(most_likely(position, self._num_top))
        listed.setdefault(token_id, position[token_id])
        return {self._names.name(other, entry): finite(entry.logprob) for other, entry in listed.items()}


def prompt_logprobs(positions: Sequence[Position | None] | None) -> PromptLogprobs | None:
    """The log-probabilities of a prompt, one map per position."""
    if positions is None:
        return None
    return [
        None
        if position is None
        else {
            token_id: PromptLogprob(finite(entry.logprob), entry.rank, entry.decoded_token)
            for token_id, entry in position.items()
        }
        for position in positions
    ]
