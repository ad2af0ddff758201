"""Finding control tokens in text, and breaking those that a user typed."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

BREAK = "\ufdd0"
"""Put into a control token's text it makes it ordinary text. A Unicode noncharacter, so no text holds it."""


class ControlTokens:
    """The texts that a tokenizer reads as control tokens (`<|im_end|>`).

    Args:
        texts: The tokens' texts; empty ones are left out.

    Attributes:
        texts: They, without the empty ones.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        known = sorted({text for text in texts if text})
        self.texts = frozenset(known)
        self._pattern = re.compile(_trie_pattern(known)) if known else None
        self._prefixes = frozenset(text[:length] for text in known for length in range(1, len(text)))
        self._longest = max(map(len, known), default=0)

    def find(self, text: str) -> Iterator[re.Match[str]]:
        """The control tokens in `text`, leftmost and longest first, without overlap; broken ones are none."""
        return self._pattern.finditer(text) if self._pattern else iter(())

    def occur_in(self, text: str) -> bool:
        """Whether a control token that is not broken stands in `text`."""
        return self._pattern is not None and self._pattern.search(text) is not None

    def break_up(self, text: str) -> str:
        """`text` with a `BREAK` after the first character of each control token.

        Where `text` ends with the beginning of a control token it is broken there too, so that no text after it
        can complete it.
        """
        if self._pattern is None:
            return text
        pieces = []
        start = 0
        while match := self._pattern.search(text, start):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        pieces.append(text[start:])
        return self.break_end(BREAK.join(pieces))

    def break_end(self, text: str) -> str:
        """`text` with a `BREAK` at its end where it ends with the beginning of a control token."""
        longest = min(self._longest - 1, len(text))
        if any(text[-length:] in self._prefixes for length in range(1, longest + 1)):
            return text + BREAK
        return text


def _trie_pattern(texts: list[str]) -> str:
    """A regular expression that matches the longest of `texts`, in time that does not grow with their number."""
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for character in text:
            node = node.setdefault(character, {})
        # A single character has no inside to be broken: a break behind it counts.
        node[""] = f"(?!{BREAK})" if len(text) == 1 else ""
    return _node_pattern(trie)


def _node_pattern(node: dict[str, Any]) -> str:
    prefix = ""
    while len(node) == 1 and "" not in node:
        ((character, node),) = node.items()
        prefix += re.escape(character)
    end = node.get("")
    branches = [re.escape(key) + _node_pattern(child) for key, child in sorted(node.items()) if key]
    if not branches:
        return prefix + str(end)
    if end is not None:
        branches.append(str(end))
    return f"{prefix}(?:{'|'.join(branches)})"
