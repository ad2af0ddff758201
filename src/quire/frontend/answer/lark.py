"""Building blocks of grammars in llguidance's dialect of Lark."""

import json
import re
from collections.abc import Mapping
from typing import Any

from quire.frontend.json_schema import close_objects
from quire.frontend.structured_outputs import WHITESPACE, terminal

TEXT = "/(?s:.*)/"
"""Any text; control tokens are none."""


class LarkRules:
    """The rules of one grammar.

    Args:
        token_ids: Of added tokens, by their texts: where one stands in a fixed text, only the token will do.
    """

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        self._token_ids = token_ids
        self._lines: list[str] = []
        texts = sorted(token_ids, key=len, reverse=True)
        self._tokens = re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts else None

    def text(self) -> str:
        """All rules; that named "start" is the first."""
        return "\n".join(self._lines) + "\n"

    def rule(self, name: str, body: str, options: str = "") -> str:
        """Adds a rule; returns its name. Names in capitals are terminals."""
        self._lines.append(f"{name}{options}: {body}")
        return name

    def fresh(self, name: str, body: str, options: str = "") -> str:
        """The same, with a number behind the name."""
        return self.rule(f"{name}{len(self._lines)}", body, options)

    def parts(self, fixed: str) -> list[str]:
        """A fixed text cut around its added tokens."""
        return [part for part in self._tokens.split(fixed) if part] if self._tokens and fixed else [fixed] * bool(fixed)

    def is_token(self, text: str) -> bool:
        """Whether this is the text of one added token."""
        return text in self._token_ids

    def fixed(self, *texts: str) -> str:
        """Fixed texts in a row."""
        return " ".join(self._part(part) for text in texts for part in self.parts(text))

    def up_to(self, marker: str, name: str, limit: str = "") -> str:
        """Any text, then a marker. The name of a rule, which begins with `name`.

        The marker's first added token ends the text, or otherwise all of it. `limit` are options of the rule for the
        text; they need a marker that is a token.
        """
        first, *rest = self.parts(marker)
        if not self.is_token(first):
            lazy = self.fresh(f"{name}_text", f"{TEXT} {terminal(first)}", "[lazy]")
            return self.fresh(name, f"{lazy} {self.fixed(*rest)}")
        text = self.fresh(f"{name}_text", TEXT, limit)
        spelled = "" if limit else " | " + self.fresh(f"{name}_spelled", f"{TEXT} {terminal(first)}", "[lazy]")
        return self.fresh(name, f"({text} {self._part(first)}{spelled}) {self.fixed(*rest)}")

    def text_without(self, texts: list[str], ending: str) -> str:
        """Any text in which none of `texts` stands, then `ending`."""
        found = "|".join(f"({_pattern(text)})" for text in texts if not self.is_token(text))
        inside = f"({TEXT} & ~/(?s:.*)({found})(?s:.*)/)" if found else TEXT
        first, *rest = self.parts(ending)
        if self.is_token(first):
            return f"{self.fresh('VALUE', inside)} {self.fixed(first, *rest)}"
        return f"{self.fresh('VALUE', f'{inside} {terminal(first)}')} {self.fixed(*rest)}"

    def json(self, schema: Any) -> str:
        """JSON that a schema accepts."""
        guided = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}} if isinstance(schema, dict) else schema
        return f"%json {json.dumps(guided)}"

    def _part(self, text: str) -> str:
        return f"<[{self._token_ids[text]}]>" if self.is_token(text) else terminal(text)


def placed_schema(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A schema that may be put at `place` of another one: its references are written from there.

    Objects get no other properties than those that the schema names, where it does not say it itself. An empty
    schema is that of a function without arguments.
    """
    closed = close_objects(dict(schema) or {"type": "object", "properties": {}})
    if closed.get("type") is None and "properties" not in closed and not _COMBINED & closed.keys():
        closed["type"] = "object"
    moved: dict[str, Any] = _move_references(closed, place)
    return moved


_COMBINED = {"anyOf", "oneOf", "allOf", "$ref", "const", "enum", "if"}


def _move_references(node: Any, place: str) -> Any:
    if isinstance(node, list):
        return [_move_references(each, place) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: f"{place}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _move_references(value, place)
        for key, value in node.items()
    }


def _pattern(text: str) -> str:
    """A regular expression for a fixed text."""
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text)
