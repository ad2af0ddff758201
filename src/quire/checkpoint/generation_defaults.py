"""Sampling defaults that a model brings along in generation_config.json."""

import os
from pathlib import Path
from typing import Any

from quire.checkpoint.architecture import token_ids
from quire.checkpoint.fields import FieldReader
from quire.checkpoint.json_file import read_json_object
from quire.errors import CheckpointNotFoundError

FILE_NAME = "generation_config.json"

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")


def read_generation_defaults(folder: Path) -> dict[str, Any]:
    """The file's sampling parameters by their names in `SamplingParams`; empty where there is no file.

    Raises:
        CorruptCheckpointError: A value of the wrong type.
    """
    fields = _fields(folder)
    if fields is None:
        return {}
    defaults: dict[str, Any] = {name: fields.optional_number(name, low=-1e-9, high=1e6) for name in _NUMBERS}
    defaults["top_k"] = fields.optional_integer("top_k", low=-1, high=2**31)
    defaults["max_tokens"] = fields.optional_integer("max_new_tokens", high=2**31)
    return {name: value for name, value in defaults.items() if value is not None}


def read_generation_eos(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The tokens that the file says end an answer."""
    fields = _fields(folder)
    return () if fields is None else token_ids(fields, "eos_token_id", vocab_size)


def require_generation_config(name: str) -> Path:
    """The folder of that name, which holds a generation_config.json.

    Raises:
        CheckpointNotFoundError: It does not.
    """
    folder = os.path.expanduser(name)
    if not os.path.isfile(os.path.join(folder, FILE_NAME)):
        raise CheckpointNotFoundError(
            f"generation_config {name[:200]!r} is not a folder with a {FILE_NAME}",
            hint="auto takes the model's own, quire takes none",
            param="generation_config",
        )
    return Path(folder)


def _fields(folder: Path) -> FieldReader | None:
    path = folder / FILE_NAME
    return FieldReader(read_json_object(path), source=str(path)) if path.is_file() else None
