"""Some control tokens can be shown while the others stay hidden: what an answer is parsed by."""

from collections.abc import Callable

import pytest

from quire.frontend.detokenizer import IncrementalDetokenizer
from quire.frontend.tokenizer import Tokenizer


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "metaspace", "word_piece"])
def test_only_the_wanted_control_tokens_are_shown(tokenizer_of: Callable[[str], Tokenizer], kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    control = {token_id: text for text, token_id in tokenizer.added_tokens.items() if tokenizer.is_special(token_id)}
    ids = sorted(control)
    wanted = ids[-1]
    detokenizer = IncrementalDetokenizer(tokenizer, [], shown_special_tokens=frozenset({control[wanted]}))
    text = "".join(detokenizer.append([token_id]) for token_id in ids) + detokenizer.flush()
    assert text.strip() == control[wanted]
    hidden = IncrementalDetokenizer(tokenizer, [])
    assert hidden.append(ids) + hidden.flush() == ""
