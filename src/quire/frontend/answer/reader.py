"""Text that arrives in pieces, read by generators that pause where the next character decides.

Every decision depends on the characters alone, never on where a piece ended: so an answer is read in the same way
however it is cut. No character is looked at more often than the longest marker is long.
"""

import re
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")
Reading = Generator[None, None, Result]
"""Reads as far as the text goes; each `yield` waits for more of it."""

_SPACE = re.compile(r"\s*")


class MarkerSet:
    """Fixed strings to look for, the leftmost first and of those the longest.

    Args:
        markers: None of them empty.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self.markers = frozenset(markers)
        self._prefixes = frozenset(marker[:length] for marker in self.markers for length in range(1, len(marker)))
        known = sorted(self.markers)
        nothing = r"[^\s\S]"
        self._open = re.compile(_trie_pattern(known, unfinished=True) or nothing)
        self._whole = re.compile(_trie_pattern(known, unfinished=False) or nothing)

    def __contains__(self, text: str) -> bool:
        return text in self.markers

    def find(self, text: str, start: int, *, final: bool) -> tuple[int, str | None]:
        """Where the first marker at or behind `start` begins, and which it is.

        Without one: where a marker may have begun that later text completes, at most the end of `text`. With
        `final` nothing follows it.
        """
        found = self._open.search(text, start)
        if found is None:
            return len(text), None
        if found.end() < len(text) or not self._may_grow(found.group()):
            return found.start(), found.group()
        if not final:
            return found.start(), None
        found = self._whole.search(text, found.start())
        return (len(text), None) if found is None else (found.start(), found.group())

    def match(self, text: str, start: int, *, final: bool) -> tuple[bool, str | None]:
        """Whether it is decided that a marker stands at `start` or that none does, and which it is."""
        found = self._open.match(text, start)
        if found is not None and found.end() == len(text) and self._may_grow(found.group()):
            if not final:
                return False, None
            found = self._whole.match(text, start)
        return True, found.group() if found is not None else None

    def _may_grow(self, text: str) -> bool:
        return text in self._prefixes or text not in self.markers


class TextReader:
    """What has arrived and was not read yet.

    Attributes:
        text: It begins somewhere before `position`.
        position: Of the next character.
        final: Nothing more arrives.
        record: What was read since `start_record`; None while nobody wants it.
    """

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        self.final = False
        self.record: list[str] | None = None

    def feed(self, text: str) -> None:
        """Adds text."""
        self.text = self.text[self.position :] + text
        self.position = 0

    def take(self, end: int) -> str:
        """Reads up to `end`."""
        piece = self.text[self.position : end]
        self.position = end
        if self.record is not None:
            self.record.append(piece)
        return piece

    def start_record(self) -> None:
        """Begins to keep what is read."""
        self.record = []

    def stop_record(self) -> str:
        """What was kept; nothing more is."""
        recorded, self.record = "".join(self.record or ()), None
        return recorded

    def unread_record(self) -> int:
        """Puts back what was kept, to be read again; returns how many characters. Nothing more is kept."""
        recorded = self.stop_record()
        if len(recorded) <= self.position:
            self.position -= len(recorded)
        else:
            self.text, self.position = recorded + self.text[self.position :], 0
        return len(recorded)

    def peek(self) -> Reading[str]:
        """The next character, "" at the end. Does not read it."""
        while self.position >= len(self.text):
            if self.final:
                return ""
            yield
        return self.text[self.position]

    def peek_visible(self) -> Reading[str]:
        """Reads white space; then the same."""
        while True:
            character = yield from self.peek()
            if not character or not character.isspace():
                return character
            found = _SPACE.match(self.text, self.position)
            assert found is not None, "the pattern matches anything"
            self.take(found.end())

    def skip(self, characters: str) -> Reading[None]:
        """Reads any number of these characters."""
        while (character := (yield from self.peek())) and character in characters:
            self.take(self.position + 1)

    def match(self, markers: MarkerSet) -> Reading[str | None]:
        """The marker that comes next, None where none does. Does not read it."""
        while True:
            decided, marker = markers.match(self.text, self.position, final=self.final)
            if decided and (marker is not None or self.position < len(self.text) or self.final):
                return marker
            yield

    def expect(self, markers: MarkerSet) -> Reading[str | None]:
        """Reads the marker that comes next, if one does."""
        marker = yield from self.match(markers)
        if marker is not None:
            self.take(self.position + len(marker))
        return marker

    def until(self, markers: MarkerSet, limit: int) -> Reading[tuple[str, str | None]]:
        """Reads the text before the first marker; returns it with the marker, which is not read.

        None at the end of the text and when the text has more than `limit` characters.
        """
        parts: list[str] = []
        length = 0
        while True:
            end, marker = markers.find(self.text, self.position, final=self.final)
            # Cut at the limit, wherever the pieces ended.
            end = min(end, self.position + limit + 1 - length)
            part = self.take(end)
            parts.append(part)
            length += len(part)
            if length > limit:
                return "".join(parts), None
            if marker is not None or self.final:
                return "".join(parts), marker
            yield


def _trie_pattern(texts: list[str], *, unfinished: bool) -> str:
    """A pattern for the longest of `texts`; with `unfinished` also for the beginning of one where the text ends."""
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for character in text:
            node = node.setdefault(character, {})
        node[""] = True
    return _branches(trie, r"|\Z" if unfinished else "") if trie else ""


def _branches(node: dict[str, Any], end: str) -> str:
    return "|".join(re.escape(key) + _node_pattern(child, end) for key, child in node.items() if key)


def _node_pattern(node: dict[str, Any], end: str) -> str:
    if len(node) == 1 and "" in node:
        return ""
    optional = "?" if "" in node else ""
    return f"(?:{_branches(node, end)}{end}){optional}"
