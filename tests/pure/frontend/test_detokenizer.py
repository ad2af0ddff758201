"""Incremental detokenisation gives, piece by piece, what decoding everything at once gives."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.frontend.detokenizer import IncrementalDetokenizer
from quire.frontend.tokenizer import Tokenizer

few = settings(max_examples=20, deadline=None)

TokenizerOf = Callable[[str], Tokenizer]
BYTE_KINDS = ["byte_level", "sentencepiece", "metaspace"]


def stream(tokenizer: Tokenizer, prompt: list[int], answer: list[int], sizes: list[int], skip: bool) -> list[str]:
    """The answer's text as it comes when its tokens arrive in batches of `sizes`, flush last."""
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=skip)
    texts = []
    start = 0
    for size in [*sizes, len(answer)]:
        texts.append(detokenizer.append(answer[start : start + size]))
        start += size
    return [*texts, detokenizer.flush()]


@pytest.mark.parametrize("kind", BYTE_KINDS)
@few
@given(data=st.data())
def test_the_pieces_together_are_the_whole_text_less_the_prompts(
    tokenizer_of: TokenizerOf, kind: str, data: st.DataObject
) -> None:
    tokenizer = tokenizer_of(kind)
    # Byte tokens are drawn more often, so that characters are torn and bytes are wrong.
    ids = st.lists(st.one_of(st.integers(0, tokenizer.vocab_size), st.integers(3, 258)), max_size=20)
    prompt, answer, skip = data.draw(ids), data.draw(ids), data.draw(st.booleans())
    texts = stream(tokenizer, prompt, answer, data.draw(st.lists(st.integers(0, 3), max_size=20)), skip)
    whole = tokenizer.decode(prompt + answer, skip_special_tokens=skip)
    # Of the prompt that part which no answer can change: less a character that it begins and does not end.
    before = IncrementalDetokenizer(tokenizer, [], skip_special_tokens=skip).append(prompt)
    assert before + "".join(texts) == whole


@few
@given(ids=st.lists(st.integers(0, 430), max_size=30))
def test_byte_level_text_is_what_the_library_makes(tokenizer_of: TokenizerOf, ids: list[int]) -> None:
    tokenizer = tokenizer_of("byte_level")
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == tokenizer.backend.decode(
            ids, skip_special_tokens=skip
        )


@few
@given(text=st.text(), extra=st.lists(st.integers(259, 300), max_size=5))
def test_sentencepiece_text_is_what_the_library_makes_of_valid_bytes(
    tokenizer_of: TokenizerOf, text: str, extra: list[int]
) -> None:
    for kind in ("sentencepiece", "metaspace"):
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode(text, parse_special=False) + extra
        assert tokenizer.decode(ids) == tokenizer.backend.decode(ids)


@few
@given(text=st.text(alphabet="a好🙂é\u200d👩", min_size=1))
def test_no_replacement_character_shows_while_a_character_is_coming(tokenizer_of: TokenizerOf, text: str) -> None:
    for kind in BYTE_KINDS:
        tokenizer = tokenizer_of(kind)
        detokenizer = IncrementalDetokenizer(tokenizer, tokenizer.encode("a"))
        ids = tokenizer.encode("a" + text, parse_special=False)
        texts = [detokenizer.append([token_id]) for token_id in ids]
        assert "\ufffd" not in "".join(texts)
        assert detokenizer.flush() == ""


def test_an_emoji_comes_with_its_last_byte(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("sentencepiece")
    ids = [3 + byte for byte in "👩".encode()]
    detokenizer = IncrementalDetokenizer(tokenizer, [1])
    assert [detokenizer.append([token_id]) for token_id in ids] == ["", "", "", "👩"]


def test_a_character_that_the_prompt_begins_is_finished(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("sentencepiece")
    first, *rest = [3 + byte for byte in "好".encode()]
    assert "".join(stream(tokenizer, [1, first], rest, [], skip=True)) == "好"


def test_an_incomplete_character_shows_at_the_end(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("sentencepiece")
    detokenizer = IncrementalDetokenizer(tokenizer, [1])
    assert detokenizer.append([3 + 0xF0, 3 + 0x9F]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_the_first_space_belongs_to_the_answer_behind_a_prompt(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("sentencepiece")
    world = tokenizer.encode("world", add_special_tokens=False)
    assert "".join(stream(tokenizer, tokenizer.encode("hello"), world, [], skip=True)) == " world"
    assert "".join(stream(tokenizer, [1], world, [], skip=True)) == "world"
    assert "".join(stream(tokenizer, [1], world, [], skip=False)) == " world"


@few
@given(data=st.data())
def test_a_tokenizer_that_looks_around_is_followed_too(tokenizer_of: TokenizerOf, data: st.DataObject) -> None:
    tokenizer = tokenizer_of("word_piece")
    ids = st.lists(st.integers(1, 9), min_size=1, max_size=12)
    prompt, answer = data.draw(ids), data.draw(ids)
    texts = stream(tokenizer, prompt, answer, data.draw(st.lists(st.integers(0, 3), max_size=8)), skip=True)
    assert tokenizer.decode(prompt) + "".join(texts) == tokenizer.decode(prompt + answer)
