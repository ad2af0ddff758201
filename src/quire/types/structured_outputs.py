"""What the text of an answer must look like. Field names and defaults are vLLM's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequestError, ParameterError

MAX_GRAMMAR_CHARACTERS = 262_144
"""Of a schema as JSON, a regular expression, a grammar, or all choices together."""

MAX_SCHEMA_DEPTH = 64
"""Objects and lists that may stand in each other in a schema."""

MAX_CHOICES = 10_000
"""Texts that an answer may be chosen from."""

MAX_WHITESPACE_PATTERN_CHARACTERS = 256

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""Fields of which a request gives exactly one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What an answer must look like: exactly one of the first six fields.

    Attributes:
        json: A JSON schema, as a text or an object; the answer is a JSON value that it accepts.
        regex: A regular expression that matches the whole answer.
        choice: The answer is one of these texts.
        grammar: A context-free grammar in Lark's notation, as llguidance reads it.
        json_object: True: any JSON object.
        structural_tag: Free text with constrained parts, as a text or an object.
        disable_any_whitespace: JSON without whitespace between its parts.
        disable_additional_properties: Objects have the properties of the schema alone, where it does not say more.
        whitespace_pattern: A regular expression for the whitespace between the parts of JSON.

    Raises:
        ParameterError: On construction, naming the field, its rule and the value.
        InvalidRequestError: None or several of the kinds were given.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                f"structured_outputs needs exactly one of {', '.join(KINDS)}, got {', '.join(given) or 'none'}",
                param=_path(given[1] if given else ""),
            )
        _CHECKS[given[0]](self)
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(_path(name), "true or false", getattr(self, name))
        self._check_whitespace()

    @property
    def kind(self) -> str:
        """Which of `KINDS` is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    def _check_json(self) -> None:
        _check_document(self.json, "json", "a JSON schema: an object that is not empty, or the text of one")

    def _check_structural_tag(self) -> None:
        _check_document(self.structural_tag, "structural_tag", "an object that is not empty, or the text of one")

    def _check_json_object(self) -> None:
        if self.json_object is not True:
            raise ParameterError(_path("json_object"), "true", self.json_object, hint="leave it out for free text")

    def _check_regex(self) -> None:
        _check_text(self.regex, "regex", allows_empty=True)

    def _check_grammar(self) -> None:
        _check_text(self.grammar, "grammar")

    def _check_choice(self) -> None:
        choices, path = self.choice, _path("choice")
        if isinstance(choices, str | bytes) or not isinstance(choices, Sequence) or not choices:
            raise ParameterError(path, "a list of texts that is not empty", choices)
        if len(choices) > MAX_CHOICES:
            raise ParameterError(path, f"at most {MAX_CHOICES} texts", len(choices))
        for choice in choices:
            if not isinstance(choice, str) or not choice:
                raise ParameterError(path, "a list of texts that are not empty", choice)
        num_characters = sum(map(len, choices))
        if num_characters > MAX_GRAMMAR_CHARACTERS:
            raise ParameterError(path, f"at most {MAX_GRAMMAR_CHARACTERS} characters together", num_characters)
        object.__setattr__(self, "choice", list(dict.fromkeys(choices)))

    def _check_whitespace(self) -> None:
        pattern, path = self.whitespace_pattern, _path("whitespace_pattern")
        if pattern is None:
            return
        if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_WHITESPACE_PATTERN_CHARACTERS:
            rule = f"a regular expression of 1 to {MAX_WHITESPACE_PATTERN_CHARACTERS} characters"
            raise ParameterError(path, rule, pattern)
        if "\0" in pattern:
            raise ParameterError(path, "without NUL", pattern)
        if self.disable_any_whitespace:
            raise ParameterError(path, "left out with disable_any_whitespace", pattern)


_CHECKS = {
    "json": StructuredOutputsParams._check_json,
    "regex": StructuredOutputsParams._check_regex,
    "choice": StructuredOutputsParams._check_choice,
    "grammar": StructuredOutputsParams._check_grammar,
    "json_object": StructuredOutputsParams._check_json_object,
    "structural_tag": StructuredOutputsParams._check_structural_tag,
}


def _path(name: str) -> str:
    return f"structured_outputs.{name}" if name else "structured_outputs"


def _check_text(text: Any, name: str, *, allows_empty: bool = False) -> None:
    path = _path(name)
    if not isinstance(text, str) or (not text.strip() and not allows_empty):
        raise ParameterError(path, "a text" if allows_empty else "a text that is not empty", text)
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise ParameterError(path, f"at most {MAX_GRAMMAR_CHARACTERS} characters", len(text))
    if "\0" in text:
        raise ParameterError(path, "without NUL", text)


def _check_document(document: Any, name: str, rule: str) -> None:
    """Checks a JSON document that may be given as its text: its shape, depth and size."""
    path = _path(name)
    if isinstance(document, str):
        _check_text(document, name)
        try:
            document = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{path} does not parse as JSON: {error}", param=path) from error
    if not isinstance(document, dict) or not document:
        raise ParameterError(path, rule, document)
    if nesting_depth(document, MAX_SCHEMA_DEPTH) > MAX_SCHEMA_DEPTH:
        raise InvalidRequestError(f"{path} must not be nested deeper than {MAX_SCHEMA_DEPTH} levels", param=path)
    try:
        num_characters = len(json.dumps(document))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{path} is not JSON: {error}", param=path) from error
    if num_characters > MAX_GRAMMAR_CHARACTERS:
        raise ParameterError(path, f"at most {MAX_GRAMMAR_CHARACTERS} characters as JSON", num_characters)


def nesting_depth(document: Any, limit: int) -> int:
    """Objects and lists that stand in each other; `limit + 1` at most, however deep it is. An empty one counts."""
    level, depth = [document], 0
    while depth <= limit:
        containers = [value for value in level if isinstance(value, Mapping | list | tuple)]
        if not containers:
            return depth
        depth += 1
        level = [
            child
            for container in containers
            for child in (container.values() if isinstance(container, Mapping) else container)
        ]
    return depth
