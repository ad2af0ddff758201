"""Typed access to the values of a metadata file. Every refusal names the file and the key."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quire.errors import CorruptCheckpointError

_REQUIRED: Any = object()


class FieldReader:
    """Reads checked values out of one JSON object or GGUF header.

    A key that is absent, or null, has its default; without a default it is required.

    Args:
        source: The file, as errors name it.
        shown_keys: Names under which errors show keys, where the file has others.
    """

    def __init__(self, values: Mapping[str, Any], *, source: str, shown_keys: Mapping[str, str] | None = None) -> None:
        self.values = values
        self.source = source
        self._shown_keys = shown_keys or {}

    def shown(self, key: str) -> str:
        """The key as the file has it."""
        return self._shown_keys.get(key, key)

    def refuse(self, key: str, rule: str, value: Any) -> CorruptCheckpointError:
        """The error for a value that breaks its rule."""
        text = repr(value)
        if len(text) > 100:
            text = text[:97] + "..."
        return CorruptCheckpointError(f"{self.source}: {self.shown(key)} must be {rule}, got {text}")

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """The raw value; the default where it is absent or null."""
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise CorruptCheckpointError(f"{self.source}: {self.shown(key)} is missing")
        return default

    def integer(self, key: str, default: int | None = _REQUIRED, *, low: int = 1, high: int) -> int:
        """An integer between `low` and `high`."""
        value = self.optional_integer(key, default, low=low, high=high)
        if value is None:
            raise CorruptCheckpointError(f"{self.source}: {self.shown(key)} is missing")
        return value

    def optional_integer(self, key: str, default: int | None = None, *, low: int = 1, high: int) -> int | None:
        """An integer between `low` and `high`, or None where the default is None."""
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, f"an integer between {low} and {high}", value)
        return value

    def number(self, key: str, default: float = _REQUIRED, *, low: float, high: float) -> float:
        """A finite number above `low` and at most `high`."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not low < value <= high:
            raise self.refuse(key, f"a number above {low} and at most {high}", value)
        return float(value)

    def optional_number(self, key: str, *, low: float, high: float) -> float | None:
        """As `number`, None where it is absent."""
        return None if self.get(key, None) is None else self.number(key, low=low, high=high)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.refuse(key, "true or false", value)
        return value

    def string(self, key: str, default: str = _REQUIRED) -> str:
        """A string."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, "a string", value)
        return value

    def string_list(self, key: str, *, length: int) -> Sequence[str] | None:
        """A list of `length` strings, or None where it is absent."""
        value = self.get(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, f"a list of {length} strings", value)
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object; empty where it is absent."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refuse(key, "an object", value)
        return value
