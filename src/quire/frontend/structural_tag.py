"""Free text with constrained parts: structural tags in both of their notations, as Lark."""

import json
import re
from collections.abc import Callable, Collection
from typing import Any

from llguidance import regex_to_lark

from quire.errors import InvalidRequestError

_PATH = "structured_outputs.structural_tag"
_ANY_TEXT = r"/(.|\n)*/"

WithOptions = Callable[[Any, str], Any]
"""Completes a schema that stands at a path."""


def lower_structural_tag(tag: dict[str, Any], special_tokens: Collection[str], with_options: WithOptions) -> str:
    """A structural tag as a grammar.

    Two notations: `{"structures": [{"begin", "schema", "end"}], "triggers": [...]}`, and
    `{"type": "structural_tag", "format": {...}}` with formats of type const_string, any_text, regex, json_schema,
    sequence, or, tag, triggered_tags and tags_with_separator.

    Args:
        tag: The tag.
        special_tokens: Texts of the control tokens; where a tag names one, the token is meant.
        with_options: Completes the schemas.

    Raises:
        InvalidRequestError: It does not have this form, or cannot be expressed.
    """
    lowering = _Lowering(special_tokens, with_options)
    if "structures" in tag or "triggers" in tag:
        form: dict[str, Any] = {"triggers": tag.get("triggers"), "tags": _old_tags(tag)}
        start = lowering.triggered_tags(form, _PATH)
    else:
        start = lowering.form(_field(tag, "format", dict, _PATH), f"{_PATH}.format", is_last=True)
    return "\n".join([f"start: {start or _EMPTY}", *lowering.rules])


_EMPTY = '""'


def _old_tags(tag: dict[str, Any]) -> list[dict[str, Any]]:
    structures = _field(tag, "structures", list, _PATH)
    tags = []
    for index, structure in enumerate(structures):
        path = f"{_PATH}.structures[{index}]"
        if not isinstance(structure, dict):
            raise InvalidRequestError(f"{path} must be an object with begin, schema and end", param=path)
        content = {"type": "json_schema", "json_schema": structure.get("schema", structure.get("structural_schema"))}
        tags.append({"begin": structure.get("begin"), "content": content, "end": structure.get("end")})
    return tags


class _Lowering:
    """Rules in the making."""

    def __init__(self, special_tokens: Collection[str], with_options: WithOptions) -> None:
        self.rules: list[str] = []
        self._with_options = with_options
        self._special = sorted(special_tokens, key=len, reverse=True)
        pattern = "|".join(map(re.escape, self._special))
        self._split = re.compile(f"({pattern})") if pattern else None
        self._num_names = 0

    def form(self, form: dict[str, Any], path: str, *, is_last: bool) -> str:
        """An expression for a format; `is_last` where nothing follows it."""
        kind = form.get("type")
        lower = {
            "const_string": lambda: self.literal(_field(form, "value", str, path)),
            "regex": lambda: f"/{regex_to_lark(_field(form, 'pattern', str, path), 'd')}/",
            "json_schema": lambda: self._schema(form, path),
            "any_text": lambda: self._free_end(_ANY_TEXT, path, is_last=is_last),
            "sequence": lambda: self._sequence(form, path, is_last=is_last),
            "or": lambda: self._alternatives(form, path, is_last=is_last),
            "tag": lambda: self.tag(form, path, skip=0),
            "triggered_tags": lambda: self._free_end(self.triggered_tags(form, path), path, is_last=is_last),
            "tags_with_separator": lambda: self._tags_with_separator(form, path),
        }.get(str(kind))
        if lower is None:
            raise InvalidRequestError(
                f"{path}.type must be const_string, any_text, regex, json_schema, sequence, or, tag, triggered_tags "
                f"or tags_with_separator, got {kind!r}",
                param=f"{path}.type",
            )
        return lower()

    def literal(self, text: str) -> str:
        """A text, control tokens in it included."""
        parts = self._split.split(text) if self._split else [text]
        return " ".join(part if part in self._special else _quote(part) for part in parts if part)

    def tag(self, form: dict[str, Any], path: str, *, skip: int) -> str:
        """What follows the first `skip` characters of a tag's begin."""
        begin, end = _field(form, "begin", str, path), _field(form, "end", str, path)
        content = _field(form, "content", dict, path)
        if content.get("type") == "any_text":
            body = self._text_until(end, path)
        else:
            body = f"({self.form(content, f'{path}.content', is_last=False)}) {self.literal(end)}"
        return self._rule(f"{self.literal(begin[skip:])} {body}")

    def triggered_tags(self, form: dict[str, Any], path: str) -> str:
        """Free text in which a trigger begins one of its tags."""
        triggers = _strings(form, "triggers", path)
        tags = _field(form, "tags", list, path)
        by_trigger: dict[str, list[str]] = {}
        for index, tag in enumerate(tags):
            tag_path = f"{path}.tags[{index}]"
            begin = _field(tag, "begin", str, tag_path)
            trigger = next((text for text in triggers if begin.startswith(text)), None)
            if trigger is None:
                raise InvalidRequestError(
                    f"{tag_path}.begin must begin with one of the triggers, got {begin!r}", param=f"{tag_path}.begin"
                )
            by_trigger.setdefault(trigger, []).append(self.tag(tag, tag_path, skip=len(trigger)))
        parts = [f"{self._text_until(trigger, path)} ({' | '.join(bodies)})" for trigger, bodies in by_trigger.items()]
        some = self._rule(" | ".join(parts))
        if form.get("stop_after_first"):
            return some if form.get("at_least_one") else f"({some} | {_ANY_TEXT})"
        return f"{some}{'+' if form.get('at_least_one') else '*'} {_ANY_TEXT}"

    def _free_end(self, expression: str, path: str, *, is_last: bool) -> str:
        """An expression that ends in free text."""
        if not is_last:
            raise InvalidRequestError(f"{path} ends in free text, so nothing can follow it", param=path)
        return expression

    def _schema(self, form: dict[str, Any], path: str) -> str:
        schema = form.get("json_schema")
        if not isinstance(schema, dict | bool):
            raise InvalidRequestError(f"{path}.json_schema must be a JSON schema", param=f"{path}.json_schema")
        schema = schema if isinstance(schema, dict) else ({} if schema else {"not": {}})
        # `%json` takes an object; one without keywords is any value.
        return self._rule(f"%json {json.dumps(self._with_options(schema, f'{path}.json_schema'))}")

    def _sequence(self, form: dict[str, Any], path: str, *, is_last: bool) -> str:
        elements = _field(form, "elements", list, path)
        last = len(elements) - 1
        parts = [
            self._element(element, f"{path}.elements[{index}]", is_last=is_last and index == last)
            for index, element in enumerate(elements)
        ]
        return " ".join(f"({part or _EMPTY})" for part in parts)

    def _element(self, element: Any, path: str, *, is_last: bool) -> str:
        return self.form(_object(element, path), path, is_last=is_last)

    def _alternatives(self, form: dict[str, Any], path: str, *, is_last: bool) -> str:
        elements = _field(form, "elements", list, path)
        return self._rule(
            " | ".join(
                self.form(_object(element, f"{path}.elements[{index}]"), f"{path}.elements[{index}]", is_last=is_last)
                for index, element in enumerate(elements)
            )
        )

    def _tags_with_separator(self, form: dict[str, Any], path: str) -> str:
        tags = _field(form, "tags", list, path)
        separator = self.literal(_field(form, "separator", str, path))
        one = self._rule(
            " | ".join(
                self.tag(_object(tag, f"{path}.tags[{index}]"), f"{path}.tags[{index}]", skip=0)
                for index, tag in enumerate(tags)
            )
        )
        several = one if form.get("stop_after_first") else f"{one} ({separator} {one})*"
        return f"({several})" if form.get("at_least_one") else f"({several})?"

    def _text_until(self, end: str, path: str) -> str:
        """Free text up to and with the first occurrence of `end`."""
        if not end:
            raise InvalidRequestError(f"{path}: free text needs an end that is not empty", param=path)
        if end in self._special:
            return f"{_ANY_TEXT} {end}"
        self._num_names += 1
        name = f"until_{self._num_names}"
        self.rules.append(f"{name}[lazy]: {_ANY_TEXT} {_quote(end)}")
        return name

    def _rule(self, body: str) -> str:
        self._num_names += 1
        name = f"rule_{self._num_names}"
        self.rules.append(f"{name}: {body.strip() or _EMPTY}")
        return name


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{path} must be an object", param=path)
    return value


def _field(form: Any, name: str, kind: type, path: str) -> Any:
    value = _object(form, path).get(name)
    if not isinstance(value, kind) or (kind is list and not value):
        shown = "a text" if kind is str else "an object" if kind is dict else "a list that is not empty"
        raise InvalidRequestError(f"{path}.{name} must be {shown}", param=f"{path}.{name}")
    return value


def _strings(form: dict[str, Any], name: str, path: str) -> list[str]:
    values = _field(form, name, list, path)
    if not all(isinstance(value, str) and value for value in values):
        raise InvalidRequestError(f"{path}.{name} must be a list of texts that are not empty", param=f"{path}.{name}")
    return list(values)
