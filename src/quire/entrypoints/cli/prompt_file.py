"""Prompts from a JSONL file or the standard input."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TextIO

from quire.errors import ConfigError
from quire.types.sampling import SamplingParams

_SAMPLING_NAMES = frozenset(f.name for f in fields(SamplingParams)) - {"output_kind"}
_PROMPT_NAMES = ("prompt", "prompt_token_ids", "messages")


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One prompt: a text, token ids, or a conversation; and the sampling parameters of its own.

    Attributes:
        prompt: What `LLM.generate` takes; empty where there are messages.
    """

    prompt: str | list[int] = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)

    def as_chat(self, system_prompt: str | None) -> "PromptLine":
        """The text as a question to the assistant; a conversation stays as it is.

        Raises:
            ConfigError: The prompt consists of token ids.
        """
        if self.messages:
            return self
        if not isinstance(self.prompt, str):
            raise ConfigError("--chat needs texts or messages, not prompt_token_ids", param="chat")
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return replace(self, prompt="", messages=[*system, {"role": "user", "content": self.prompt}])


def stdin_prompt(stream: TextIO) -> str:
    """All of the standard input as one prompt, without the line break at its end.

    Raises:
        ConfigError: It is a terminal or empty.
    """
    text = "" if stream.isatty() else stream.read().removesuffix("\n")
    if not text:
        raise ConfigError("no prompt", hint="give --prompt or --file, or pipe a text in", param="prompt")
    return text


def read_prompt_file(path: Path) -> list[PromptLine]:
    """The prompts of a JSONL file; blank lines are skipped.

    Raises:
        ConfigError: The file cannot be read, is empty, or has a malformed line; the text names the line.
    """
    lines = [_parse_line(f"{path}:{number}", line) for number, line in numbered_lines(path)]
    if not lines:
        raise ConfigError(f"{path} holds no prompt", param="file")
    return lines


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            yield from ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read {path}: {reason}") from error


def _parse_line(place: str, text: str) -> PromptLine:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{place} must be a JSON object", hint='for example {"prompt": "Once upon a time"}')
    given = [name for name in _PROMPT_NAMES if name in values]
    if len(given) != 1:
        raise ConfigError(f"{place} must have one of {', '.join(_PROMPT_NAMES)}, has {', '.join(given) or 'none'}")
    prompt = values.pop(given[0])
    unknown = values.keys() - _SAMPLING_NAMES
    if unknown:
        raise ConfigError(f"{place}: unknown field {min(unknown)!r}", hint="besides the prompt: sampling parameters")
    _check_prompt(place, given[0], prompt)
    if isinstance(values.get("logit_bias"), dict):
        # JSON has no integer keys.
        values["logit_bias"] = {_as_integer(key): bias for key, bias in values["logit_bias"].items()}
    return PromptLine(messages=prompt, sampling=values) if given[0] == "messages" else PromptLine(prompt, [], values)


def _check_prompt(place: str, name: str, prompt: Any) -> None:
    if name == "prompt":
        rule, holds = "a string", isinstance(prompt, str)
    elif name == "prompt_token_ids":
        rule = "a list of integers"
        holds = isinstance(prompt, list) and all(type(token_id) is int for token_id in prompt)
    else:
        rule = "a list of objects with role and content"
        holds = isinstance(prompt, list) and bool(prompt) and all(isinstance(turn, dict) for turn in prompt)
    if not holds:
        raise ConfigError(f"{place}: {name} must be {rule}")


def _as_integer(key: str) -> int | str:
    return int(key) if key.isascii() and key.isdigit() else key
