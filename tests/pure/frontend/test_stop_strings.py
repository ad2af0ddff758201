"""Stop strings: streaming and not streaming agree, and nothing of one gets out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.frontend.stop_strings import StopAutomaton, StopStrings

few = settings(max_examples=20, deadline=None)

letters = st.text(alphabet="ab", min_size=1, max_size=4)
stops = st.lists(letters, min_size=1, max_size=4)
texts = st.text(alphabet="abc", max_size=30)


def naive(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """Looks at every beginning of the text in turn: the stop string that is complete first, the longest if several."""
    for end in range(1, len(text) + 1):
        ending = [item for item in stop if text[:end].endswith(item)]
        if ending:
            longest = max(ending, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def feed(stop_strings: StopStrings, pieces: list[str]) -> tuple[list[str], str | None]:
    shown = []
    for piece in pieces:
        text, found = stop_strings.feed(piece)
        shown.append(text)
        if found is not None:
            return shown, found
    text, found = stop_strings.feed("", final=True)
    return [*shown, text], found


@few
@given(text=texts, stop=stops, include=st.booleans(), sizes=st.lists(st.integers(0, 5), max_size=30))
def test_every_way_to_cut_the_text_gives_the_same(text: str, stop: list[str], include: bool, sizes: list[int]) -> None:
    pieces: list[str] = []
    start = 0
    for size in [*sizes, len(text)]:
        pieces.append(text[start : start + size])
        start += size
    shown, found = feed(StopStrings(stop, include=include), pieces)
    assert ("".join(shown), found) == naive(text, stop, include)


@few
@given(text=texts, stop=stops)
def test_what_is_shown_is_always_a_beginning_of_the_result(text: str, stop: list[str]) -> None:
    result, _ = naive(text, stop, include=False)
    shown, _ = feed(StopStrings(stop), list(text))
    for count in range(len(shown) + 1):
        assert result.startswith("".join(shown[:count]))


@few
@given(text=texts, stop=stops)
def test_no_more_is_held_back_than_may_be_a_stop_string(text: str, stop: list[str]) -> None:
    stop_strings = StopStrings(stop)
    shown = ""
    for index, character in enumerate(text):
        released, found = stop_strings.feed(character)
        shown += released
        if found is not None:
            return
        held = text[len(shown) : index + 1]
        assert held == "" or any(item.startswith(held) for item in stop)


@few
@given(before=texts, after=texts, stop=stops)
def test_text_that_is_not_checked_ends_nothing_but_counts(before: str, after: str, stop: list[str]) -> None:
    stop_strings = StopStrings(stop)
    shown, found = stop_strings.feed(before, check=False)
    assert found is None
    rest, found = feed(stop_strings, list(after))
    ends = range(len(before) + 1, len(before + after) + 1)
    first = next((e for e in ends if any((before + after)[:e].endswith(item) for item in stop)), None)
    if first is None:
        assert (shown + "".join(rest), found) == (before + after, None)
    else:
        longest = max((item for item in stop if (before + after)[:first].endswith(item)), key=len)
        assert (shown + "".join(rest), found) == ((before + after)[: first - len(longest)], longest)


@pytest.mark.parametrize("include", [True, False])
def test_samples_share_an_automaton(include: bool) -> None:
    automaton = StopAutomaton(["END"])
    first, second = StopStrings(automaton, include=include), StopStrings(automaton, include=include)
    assert first.feed("xE") == ("x", None)
    assert second.feed("yEND") == ("yEND" if include else "y", "END")
    assert first.feed("ND") == ("END" if include else "", "END")


def test_the_work_grows_with_the_text_and_not_with_the_stop_strings() -> None:
    steps = 0

    class Counted(StopAutomaton):
        def advance(self, state: int, character: str) -> int:
            nonlocal steps
            steps += 1
            return super().advance(state, character)

    automaton = Counted(["a" * 1000 + letter for letter in "bcdefgh"])
    steps = 0
    shown, found = StopStrings(automaton).feed("a" * 20_000, final=True)
    assert (len(shown), found, steps) == (20_000, None, 20_000)
