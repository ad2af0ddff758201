"""What a command takes, and how its arguments are read: from the command line and from a YAML file."""

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from quire.config.cache import CacheConfig
from quire.config.compatibility import UNBUILT, UNBUILT_ALIASES, refuse_unbuilt
from quire.config.device import DeviceConfig
from quire.config.engine import EngineConfig
from quire.config.model import ModelConfig
from quire.config.option import option, options_of
from quire.config.scheduler import SchedulerConfig
from quire.entrypoints.cli.flags import Flag, FlagIndex, flags_of, index_spellings
from quire.errors import ConfigError

ENGINE_GROUPS: Mapping[str, type] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "device": DeviceConfig,
}

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """Options from a file."""

    config: str | None = option(
        None, basic=True, help="YAML file of options; its keys are flag names, and the command line wins."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralOptions(FileOptions):
    """What every command but `serve` takes; the log level of `serve` belongs to its server."""

    log_level: str = option(
        "warning", choices=("debug", "info", "warning", "error"), help="What the log on standard error shows."
    )


@dataclass(frozen=True)
class CommandLine:
    """A command's name and the options it takes.

    Attributes:
        name: With all its words: "bench serve".
        summary: One sentence for the list of commands.
        groups: Option classes by the heading under which help shows them.
        bare_word: The option that a word without a flag fills, None where no such word is allowed.
        examples: Command lines for the help.
    """

    name: str
    summary: str
    groups: Mapping[str, type]
    bare_word: str | None = None
    examples: tuple[str, ...] = ()

    @cached_property
    def flags(self) -> list[Flag]:
        """All flags, group by group."""
        return [flag for group, option_class in self.groups.items() for flag in flags_of(option_class, group)]

    @cached_property
    def spellings(self) -> FlagIndex:
        """Flags by every spelling of theirs."""
        return index_spellings(self.flags)

    @property
    def builds_engine(self) -> bool:
        """Whether the command runs a model itself, so that vLLM's engine flags have a meaning here."""
        return ModelConfig in self.groups.values()

    @cached_property
    def unbuilt_spellings(self) -> dict[str, tuple[str, bool]]:
        """Every spelling of options that are known and not built: the option, and what it sets a switch to."""
        if not self.builds_engine:
            return {}
        index: dict[str, tuple[str, bool]] = {}
        for name, unbuilt in UNBUILT.items():
            flag = name.replace("_", "-")
            index["--" + flag] = (name, True)
            if unbuilt.is_switch:
                index["--no-" + flag] = (name, False)
        index |= {alias: (name, True) for alias, name in UNBUILT_ALIASES.items()}
        return {spelling: entry for spelling, entry in index.items() if spelling not in self.spellings}

    @cached_property
    def _parser(self) -> argparse.ArgumentParser:
        return _make_parser(self)

    def parse(self, words: Sequence[str]) -> "Arguments":
        """Reads the arguments that follow the command's name, and the YAML file that they may name.

        Raises:
            ConfigError: An unknown flag or key, a value that is not of its kind, or an option that is not built.
        """
        namespace, rest = self._parser.parse_known_args([_with_dashes(word) for word in words])
        given = vars(namespace)
        unbuilt = {name.removeprefix(_UNBUILT): given.pop(name) for name in list(given) if name.startswith(_UNBUILT)}
        refuse_unbuilt(given | unbuilt, as_flags=True)
        bare_words = self._bare_words(rest)
        flags = {flag.name: flag for flag in self.flags}
        values = {name: flags[name].convert(value) for name, value in given.items()}
        if bare_words:
            assert self.bare_word is not None
            values[self.bare_word] = self._one_bare_word(bare_words, values)
        if values.get("config") is not None:
            values = self.read_file(Path(values["config"])) | values
        return Arguments(self, values)

    def read_file(self, path: Path) -> dict[str, Any]:
        """The options of a YAML file.

        Raises:
            ConfigError: It cannot be read, or holds anything but known options with values of their kind.
        """
        given: dict[str, Any] = {}
        unbuilt: dict[str, Any] = {}
        for key, value in _read_yaml(path).items():
            spelling = "--" + str(key).replace("_", "-")
            if spelling in self.unbuilt_spellings:
                name, switched_on = self.unbuilt_spellings[spelling]
                unbuilt[name] = value if switched_on else not value
            elif spelling in self.spellings and spelling != "--config":
                flag, switched_on = self.spellings[spelling]
                given[flag.name] = value if switched_on else not flag.convert(value)
            else:
                hint = _nearest(spelling, self.spellings) or f"`quire {self.name} --help=all` lists the options"
                raise ConfigError(f"{path}: unknown key {key!r}", hint=hint.replace("--", ""), param=str(key))
        refuse_unbuilt(given | unbuilt, as_flags=True)
        flags = {flag.name: flag for flag in self.flags}
        return {name: flags[name].convert(value) for name, value in given.items()}

    def _bare_words(self, rest: Sequence[str]) -> list[str]:
        unknown = next((word for word in rest if word.startswith("-") and word != "-"), None)
        if unknown is None:
            if rest and self.bare_word is None:
                raise ConfigError(f"quire {self.name} takes no argument without a flag, got {rest[0]!r}")
            return list(rest)
        spelling, _, value = unknown.partition("=")
        whole = spelling.partition(".")[0]
        if whole in self.unbuilt_spellings:
            refuse_unbuilt({self.unbuilt_spellings[whole][0]: value or spelling}, as_flags=True)
        hint = f"`quire {self.name} --help=all` lists the flags"
        nearest = _nearest(spelling, (*self.spellings, *self.unbuilt_spellings))
        raise ConfigError(f"unknown flag {spelling}", hint=f"{nearest}; {hint}" if nearest else hint)

    def _one_bare_word(self, words: Sequence[str], values: Mapping[str, Any]) -> str:
        assert self.bare_word is not None
        candidates = {*words, values.get(self.bare_word, words[0])}
        if len(words) > 1 or len(candidates) > 1:
            shown = " and ".join(repr(word) for word in (*words, *candidates.difference(words)))
            raise ConfigError(f"{self.bare_word} is given more than once: {shown}", param=self.bare_word)
        return words[0]


class Arguments:
    """What a user gave: options by name, without the defaults."""

    def __init__(self, command: CommandLine, values: Mapping[str, Any]) -> None:
        self.command = command
        self.values = values

    def make(self, option_class: type[Options]) -> Options:
        """The options of one class, with the defaults filled in.

        Raises:
            ConfigError: A value that the class refuses.
        """
        return option_class(**self._only([option_class]))

    def make_engine_config(self) -> EngineConfig:
        """The engine's options.

        Raises:
            ConfigError: A value that its owner refuses.
        """
        return EngineConfig.from_options(**self.engine_options())

    def engine_options(self) -> dict[str, Any]:
        """The engine's options that were given, as `LLM` takes them."""
        return self._only(ENGINE_GROUPS.values())

    def _only(self, option_classes: Iterable[type]) -> dict[str, Any]:
        names = {name for option_class in option_classes for name in options_of(option_class)}
        return {name: value for name, value in self.values.items() if name in names}


_UNBUILT = "unbuilt "


class _Parser(argparse.ArgumentParser):
    """Raises our error where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "), hint=f"`{self.prog} --help` shows how to use it")


def _make_parser(command: CommandLine) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"quire {command.name}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for spelling, (flag, switched_on) in command.spellings.items():
        if flag.kind is bool:
            parser.add_argument(spelling, dest=flag.name, action="store_const", const=switched_on)
        elif flag.many:
            parser.add_argument(spelling, dest=flag.name, action="extend", nargs="+")
        else:
            parser.add_argument(spelling, dest=flag.name)
    for spelling, (name, switched_on) in command.unbuilt_spellings.items():
        if UNBUILT[name].is_switch:
            parser.add_argument(spelling, dest=_UNBUILT + name, action="store_const", const=switched_on)
        else:
            parser.add_argument(spelling, dest=_UNBUILT + name)
    return parser


def _with_dashes(word: str) -> str:
    """--max_model_len=4k becomes --max-model-len=4k."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _nearest(spelling: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(spelling.replace("_", "-"), known, n=1)
    return f"did you mean {matches[0]}?" if matches else ""


def _read_yaml(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read {path}: {reason}", param="config") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}", param="config") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} must hold a map of options, got a {type(content).__name__}",
            hint="one option per line: `max-model-len: 4096`",
            param="config",
        )
    return content
