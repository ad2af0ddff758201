"""Command-line flags made from the documented fields of option classes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass
from decimal import Decimal
from types import MappingProxyType, NoneType
from typing import Any, get_args, get_origin, get_type_hints

from quire.config.option import Option, options_of
from quire.errors import ConfigError

_SUFFIXES = MappingProxyType({"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30})
_HUMAN_INTEGER = re.compile(r"(?P<whole>-?\d+)(?P<fraction>\.\d+)?(?P<suffix>[kKmMgG]?)")
_BOOLEANS = MappingProxyType({"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False})


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a command.

    Attributes:
        name: With underscores, as in Python and YAML.
        group: Under which heading the help shows it.
        kind: The type of one value: str, int, float or bool.
        many: Whether it takes several values and may be repeated.
        default: The field's default.
    """

    name: str
    group: str
    kind: type
    many: bool
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """The spelling that help and errors show."""
        return "--" + self.name.replace("_", "-")

    @property
    def spellings(self) -> tuple[str, ...]:
        """What sets it (for a switch: to true)."""
        return (self.flag, *self.option.aliases)

    @property
    def opposites(self) -> tuple[str, ...]:
        """What sets a switch to false; nothing for other flags."""
        if self.kind is not bool:
            return ()
        opposites = ["--no-" + self.flag.removeprefix("--")]
        for word, other in (("enable", "disable"), ("disable", "enable")):
            if self.flag.startswith(f"--{word}-"):
                opposites.append(f"--{other}-" + self.flag.removeprefix(f"--{word}-"))
        return tuple(opposites)

    def convert(self, value: Any) -> Any:
        """The value of the field for what stands on the command line (a string) or in YAML.

        Raises:
            ConfigError: It is not of the flag's kind, or not one of its choices.
        """
        if value is None:
            return None
        if self.many:
            items = value if isinstance(value, list | tuple) else [value]
            return tuple(self._convert_one(item) for item in items)
        return self._convert_one(value)

    def _convert_one(self, value: Any) -> Any:
        converted = self._typed(value)
        choices = self.option.choices
        if choices and converted not in choices:
            raise self._refuse(f"one of {', '.join(choices)}", value)
        return converted

    def _typed(self, value: Any) -> Any:
        if self.kind is bool:
            found = _BOOLEANS.get(str(value).lower())
            if found is None:
                raise self._refuse("true or false", value)
            return found
        if isinstance(value, bool | dict | list):
            raise self._refuse(f"{_KIND_NAMES[self.kind]}", value)
        if self.kind is int:
            return self._integer(str(value))
        if self.kind is float:
            return self._number(str(value))
        return str(value)

    def _integer(self, text: str) -> int:
        if not self.option.human_integer:
            try:
                return int(text)
            except ValueError:
                raise self._refuse("an integer", text) from None
        number = parse_human_integer(text)
        if number is None:
            raise self._refuse("an integer such as 4096, 4k (4,000), 1.5k or 4K (4,096)", text)
        return number

    def _number(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise self._refuse("a number", text) from None

    def _refuse(self, rule: str, value: Any) -> ConfigError:
        return ConfigError(f"{self.flag} must be {rule}, got {value!r}", param=self.name)


_KIND_NAMES = {int: "an integer", float: "a number", str: "a string"}


def parse_human_integer(text: str) -> int | None:
    """4096, 4k (4,000), 4K (4,096), 1.5m; decimals with lower-case suffixes only. None for anything else."""
    match = _HUMAN_INTEGER.fullmatch(text.strip())
    if match is None:
        return None
    suffix, fraction = match["suffix"], match["fraction"] or ""
    if fraction and suffix not in ("k", "m", "g"):
        return None
    number = Decimal(match["whole"] + fraction) * _SUFFIXES[suffix]
    return int(number) if number == int(number) else None


def flags_of(option_class: type, group: str) -> list[Flag]:
    """The flags of an option class, in the order of its fields."""
    hints = get_type_hints(option_class)
    return [_make_flag(group, field, option, hints[name]) for name, (field, option) in options_of(option_class).items()]


def index_spellings(flags: Iterable[Flag]) -> dict[str, tuple[Flag, bool]]:
    """Every spelling of the flags, with what it sets a switch to (true for other flags).

    An opposite that is another flag's own spelling belongs to that flag.
    """
    flags = list(flags)
    index = {spelling: (flag, True) for flag in flags for spelling in flag.spellings}
    for flag in flags:
        for spelling in flag.opposites:
            index.setdefault(spelling, (flag, False))
    return index


def default_text(flag: Flag) -> str:
    """The default as help and reference show it; empty where there is none."""
    if flag.default is None or flag.default in ("", ()):
        return ""
    if flag.kind is bool:
        return "on" if flag.default else "off"
    if flag.option.human_integer:
        return human_integer_text(flag.default)
    return " ".join(map(str, flag.default)) if flag.many else str(flag.default)


def human_integer_text(number: int) -> str:
    """32M for 33,554,432; numbers without a short binary form as they are."""
    for suffix in ("G", "M", "K"):
        if number % _SUFFIXES[suffix] == 0 and number >= 16 * _SUFFIXES[suffix]:
            return f"{number // _SUFFIXES[suffix]}{suffix}"
    return str(number)


def _make_flag(group: str, field: Field[Any], option: Option, hint: Any) -> Flag:
    kind, many = _kind_of(hint)
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return Flag(field.name, group, kind, many, default, option)


def _kind_of(hint: Any) -> tuple[type, bool]:
    alternatives = [item for item in get_args(hint) if item is not NoneType]
    if get_origin(hint) is tuple:
        return alternatives[0], True
    if alternatives:
        return _kind_of(alternatives[0])
    assert hint in (str, int, float, bool), hint
    return hint, False


FlagIndex = Mapping[str, tuple[Flag, bool]]
