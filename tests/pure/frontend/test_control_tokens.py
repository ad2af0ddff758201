"""Control tokens in text are found longest first, and a user's are broken whatever stands around them."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.frontend.control_tokens import BREAK, ControlTokens

few = settings(max_examples=20, deadline=None)

TEXTS = ["<|a|>", "<|ab|>", "<|a|><", "</s>", "<s>", "x"]
CONTROL = ControlTokens(TEXTS)

typed = st.lists(st.sampled_from(["<", "|", "a", "b", ">", "/", "s", "x", " ", *TEXTS]), max_size=12).map("".join)


@few
@given(typed)
def test_finds_what_a_plain_alternation_finds(text: str) -> None:
    plain = re.compile("|".join(re.escape(item) for item in sorted(TEXTS, key=len, reverse=True)))
    assert [match.span() for match in CONTROL.find(text)] == [match.span() for match in plain.finditer(text)]


@few
@given(typed)
def test_a_broken_text_holds_no_control_token_and_loses_nothing(text: str) -> None:
    broken = CONTROL.break_up(text)
    assert not CONTROL.occur_in(broken)
    assert broken.replace(BREAK, "") == text


@few
@given(typed, typed)
def test_broken_texts_do_not_form_one_together(first: str, second: str) -> None:
    assert not CONTROL.occur_in(CONTROL.break_up(first) + CONTROL.break_up(second))


@few
@given(typed)
def test_breaking_twice_is_breaking_once(text: str) -> None:
    once = CONTROL.break_up(text)
    assert CONTROL.break_up(once) == once


def test_without_control_tokens_nothing_changes() -> None:
    none = ControlTokens([""])
    assert none.break_up("<|a|>") == "<|a|>"
    assert not none.occur_in("<|a|>")
    assert list(none.find("<|a|>")) == []
