"""The tokenizer and the chat template of a model folder."""

import logging
import os
from pathlib import Path
from typing import Any

from quire.checkpoint.json_file import read_bounded_text, read_json_object
from quire.checkpoint.tokenizer_source import TokenizerSource
from quire.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedModelError

logger = logging.getLogger("quire.checkpoint")

MAX_TEMPLATE_BYTES = 1024 * 1024


def folder_tokenizer(folder: Path) -> TokenizerSource:
    """The folder's tokenizer.json with its tokenizer_config.json.

    Raises:
        CheckpointNotFoundError: There is no tokenizer.
        UnsupportedModelError: There is one, in another format.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        return TokenizerSource("tokenizer.json", path, config=_tokenizer_config(folder))
    other = next((name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).is_file()), None)
    hint = "give a folder or hub id with a tokenizer.json as --tokenizer"
    if other is None:
        raise CheckpointNotFoundError(f"{folder}: no tokenizer.json", hint=hint)
    raise UnsupportedModelError(f"{folder}: {other} without a tokenizer.json is not supported", hint=hint)


def folder_chat_template(folder: Path) -> str | None:
    """The template in chat_template.jinja, chat_template.json or tokenizer_config.json; None where none is.

    Raises:
        CorruptCheckpointError: A template larger than `MAX_TEMPLATE_BYTES`, or not a string.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_bounded_text(path, MAX_TEMPLATE_BYTES)
    for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
        if path.is_file():
            template = _default_template(path, read_json_object(path).get("chat_template"))
            if template is not None:
                return template
    return None


def given_chat_template(text_or_path: str) -> str:
    """The template of the option chat_template: a file, or the template itself where it holds Jinja marks.

    Raises:
        CheckpointNotFoundError: Neither.
    """
    if "{{" in text_or_path or "{%" in text_or_path:
        return text_or_path
    path = os.path.expanduser(text_or_path)
    if not os.path.isfile(path):
        raise CheckpointNotFoundError(
            f"chat_template {text_or_path[:200]!r} is neither a file nor a template", param="chat_template"
        )
    return read_bounded_text(Path(path), MAX_TEMPLATE_BYTES)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what only special_tokens_map.json says."""
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values = read_json_object(folder / name)
            merged |= {key: value for key, value in values.items() if value is not None}
    return merged


def _default_template(path: Path, value: Any) -> str | None:
    """The template itself, or the one named "default" of a list."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        named = {item.get("name"): item.get("template") for item in value}
        value = named.get("default")
        if value is None and named:
            logger.warning("%s: no chat template is named 'default'; none is used", path)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEMPLATE_BYTES:
        raise CorruptCheckpointError(f"{path}: chat_template must be a string of at most {MAX_TEMPLATE_BYTES} bytes")
    return value
