"""Fields that carry their own documentation; the command line and the docs are made from it."""

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """What a setting means to a user.

    Attributes:
        help: One sentence, with the unit.
        choices: Allowed values, where they can be listed.
        aliases: Further flags, such as "-q".
        human_integer: Whether "1k" (1,000) and "1K" (1,024) are understood.
        basic: Whether the short help shows it.
    """

    help: str
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    human_integer: bool = False
    basic: bool = False


def option(default: Any = None, *, factory: Callable[[], Any] | None = None, **description: Any) -> Any:
    """A dataclass field with its `Option`. Give `factory` for mutable defaults."""
    metadata = {"option": Option(**description)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(config_class: type) -> dict[str, tuple[Field[Any], Option]]:
    """The documented fields of a config class by name."""
    return {f.name: (f, f.metadata["option"]) for f in fields(config_class) if "option" in f.metadata}
