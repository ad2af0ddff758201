"""Reads the small JSON files of a model, with a bound on their size and depth."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from quire.errors import CheckpointNotFoundError, CorruptCheckpointError

MAX_JSON_BYTES = 100 * 1024 * 1024


def read_bounded_text(path: Path, max_bytes: int) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        CheckpointNotFoundError: There is no such file, or it cannot be read.
        CorruptCheckpointError: It is larger than `max_bytes`, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise CheckpointNotFoundError(f"{path}: no such file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointNotFoundError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > max_bytes:
        raise CorruptCheckpointError(f"{path}: larger than {max_bytes} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(f"{path}: not UTF-8 at byte {error.start}") from error


def parse_json_object(text: str | bytes, source: str) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        CorruptCheckpointError: Not JSON, not an object, a key twice in one object, or nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise CorruptCheckpointError(f"{source}: nested too deeply") from error
    except ValueError as error:
        raise CorruptCheckpointError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{source}: not a JSON object but {type(value).__name__}")
    return value


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads a file that holds one JSON object; errors name the file."""
    return parse_json_object(read_bounded_text(path, max_bytes), str(path))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {twice[:100]!r} stands twice in one object")
    return values
