"""Help texts, short by default. `--help=all`, `--help=<group>` and `--help=<flag or word>` show more."""

import textwrap
from collections.abc import Iterable, Sequence

from quire.config.compatibility import UNBUILT, Unbuilt
from quire.entrypoints.cli.command_line import CommandLine
from quire.entrypoints.cli.flags import Flag, default_text

WIDTH = 100
COLUMN = 34


def wanted_help(words: Sequence[str]) -> str | None:
    """What `-h`, `--help` or `--help=TOPIC` among the words asks for; "" for the short help, None for no help."""
    for word in words:
        if word == "--":
            break
        if word in ("-h", "--help"):
            return ""
        if word.startswith("--help="):
            return word.removeprefix("--help=").strip()
    return None


def command_help(command: CommandLine, topic: str) -> str:
    """The help of a command on a topic: "" for the short one, "all", a group, or a word to search for."""
    if topic == "":
        return _short(command)
    if topic == "all":
        return "\n".join([*_heading(command), *_sections(command, command.flags), *_vllm_note(command)])
    if topic in command.groups:
        return "\n".join(_sections(command, [flag for flag in command.flags if flag.group == topic]))
    return _search(command, topic)


def list_help(title: str, summaries: Iterable[tuple[str, str]], more: Sequence[str]) -> str:
    """A list of commands with their summaries, and lines that say how to learn more."""
    rows = [f"  {name:<18}{summary}" for name, summary in summaries]
    return "\n".join([title, "", *rows, "", *more])


def option_kind(flag: Flag) -> str:
    """The values of an option as help and reference show them; empty for a switch."""
    if flag.kind is bool:
        return ""
    if flag.option.choices:
        kind = "{" + ",".join(flag.option.choices) + "}"
    elif flag.kind is int:
        kind = "N"
    elif flag.kind is float:
        kind = "X"
    else:
        kind = "TEXT"
    return f"{kind} ..." if flag.many else kind


def _short(command: CommandLine) -> str:
    basic = [flag for flag in command.flags if flag.option.basic]
    lines = [*_heading(command), *_sections(command, basic)]
    if command.examples:
        lines += ["examples:", *(f"  {example}" for example in command.examples), ""]
    if len(basic) < len(command.flags):
        lines += [
            f"These are {len(basic)} of {len(command.flags)} options. More:",
            f"  {'--help=all':<16}all of them",
            f"  {'--help=GROUP':<16}one group: {', '.join(command.groups)}",
            f"  {'--help=WORD':<16}those whose name or text contains the word",
        ]
    return "\n".join(lines)


def _heading(command: CommandLine) -> list[str]:
    bare_word = f" [{command.bare_word.upper()}]" if command.bare_word else ""
    return [f"usage: quire {command.name}{bare_word} [options]", "", command.summary, ""]


def _sections(command: CommandLine, flags: Sequence[Flag]) -> list[str]:
    lines = []
    for group in command.groups:
        members = [flag for flag in flags if flag.group == group]
        if members:
            lines += [f"{group}:", *(line for flag in members for line in _describe(flag)), ""]
    return lines


def _describe(flag: Flag) -> list[str]:
    names = ", ".join([flag.flag, *(alias for alias in flag.option.aliases if not alias.startswith("--"))])
    if flag.kind is bool and flag.default:
        names += f", {flag.opposites[0]}"
    default = default_text(flag)
    text = f"{flag.option.help} (default: {default})" if default else flag.option.help
    return _two_columns(f"{names} {option_kind(flag)}".rstrip(), text)


def _two_columns(left: str, right: str) -> list[str]:
    wrapped = textwrap.wrap(right, WIDTH - COLUMN)
    if len(left) > COLUMN - 4:
        return [f"  {left}", *(" " * COLUMN + line for line in wrapped)]
    first = f"  {left}".ljust(COLUMN) + wrapped[0]
    return [first, *(" " * COLUMN + line for line in wrapped[1:])]


def _search(command: CommandLine, topic: str) -> str:
    word = topic.lstrip("-").replace("_", "-").lower()
    found = [flag for flag in command.flags if _mentions(flag, word)]
    lines = _sections(command, found)
    unbuilt = [name for name in UNBUILT if command.builds_engine and word in name.replace("_", "-")]
    if unbuilt:
        lines += ["of vLLM, not built in quire:"]
        for name in unbuilt:
            lines += _two_columns("--" + name.replace("_", "-"), unbuilt_text(UNBUILT[name]))
        lines += [""]
    if not lines:
        return f"no option of `quire {command.name}` mentions {topic!r}; `--help=all` lists them"
    return "\n".join(lines)


def _mentions(flag: Flag, word: str) -> bool:
    names = (*flag.spellings, *flag.opposites)
    return any(word in name for name in names) or word in flag.option.help.lower()


def unbuilt_text(unbuilt: Unbuilt) -> str:
    """Which values of an option that is not built pass, and what to do instead."""
    if unbuilt.is_switch:
        shown = ["on" if value else "off" for value in unbuilt.accepted]
    else:
        shown = [str(value) for value in unbuilt.accepted if value != ""]
    hint = unbuilt.hint[0].upper() + unbuilt.hint[1:]
    return f"Accepted: {', '.join(shown)}. {hint}." if shown else f"{hint}."


def _vllm_note(command: CommandLine) -> list[str]:
    if not command.builds_engine:
        return []
    return [
        "Flags of vLLM that are not listed are accepted where their value asks for what quire does anyway",
        "(--tensor-parallel-size 1, --swap-space 0, --async-scheduling); other values are refused with a hint.",
        "--help=WORD says which.",
    ]
