"""Ending a text at a stop string without letting any of it out."""

from collections.abc import Sequence


class StopAutomaton:
    """Finds all stop strings at once, looking at each character of a text once (Aho and Corasick).

    A state is the longest end of the text so far that begins a stop string; its depth is that end's length.

    Args:
        stop: The stop strings, none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.match: list[str | None] = [None]
        for text in stop:
            self._insert(text)
        self._fallback = [0] * len(self._next)
        self._link()

    def advance(self, state: int, character: str) -> int:
        """The state after one more character."""
        following = self._next
        while character not in following[state]:
            if state == 0:
                return 0
            state = self._fallback[state]
        return following[state][character]

    def _insert(self, text: str) -> None:
        state = 0
        for depth, character in enumerate(text, start=1):
            following = self._next[state]
            if character not in following:
                following[character] = len(self._next)
                self._next.append({})
                self.depth.append(depth)
                self.match.append(None)
            state = following[character]
        self.match[state] = text

    def _link(self) -> None:
        """Sets each state's fallback, the next shorter end that begins a stop string; breadth first."""
        queue = list(self._next[0].values())
        for state in queue:
            for character, child in self._next[state].items():
                self._fallback[child] = self.advance(self._fallback[state], character)
                if self.match[child] is None:
                    self.match[child] = self.match[self._fallback[child]]
                queue.append(child)


class StopStrings:
    """Lets a text through up to its first stop string.

    The first is the one that is complete first; of several that end together, the longest. Text that may be the
    beginning of a stop string is held back until that is decided, so the outcome does not depend on how the text
    was cut into pieces.

    Args:
        stop: The stop strings, or their automaton to share it between samples.
        include: Let the stop string itself through.
    """

    def __init__(self, stop: Sequence[str] | StopAutomaton, *, include: bool = False) -> None:
        self._automaton = stop if isinstance(stop, StopAutomaton) else StopAutomaton(stop)
        self._include = include
        self._state = 0
        self._held = ""

    def feed(self, text: str, *, final: bool = False, check: bool = True) -> tuple[str, str | None]:
        """Adds text. Returns what may be shown now, and the stop string if one is complete.

        After a stop string nothing may be fed.

        Args:
            text: Follows what was fed before.
            final: Nothing follows: let go of what is held back.
            check: False ignores the stop strings that `text` completes.
        """
        automaton = self._automaton
        state = self._state
        for index, character in enumerate(text):
            state = automaton.advance(state, character)
            stop = automaton.match[state]
            if stop is not None and check:
                whole = self._held + text[: index + 1]
                return (whole if self._include else whole[: len(whole) - len(stop)]), stop
        self._state = state
        whole = self._held + text
        num_free = len(whole) if final else len(whole) - automaton.depth[state]
        self._held = whole[num_free:]
        return whole[:num_free], None
