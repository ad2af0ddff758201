"""Writes docs/reference/flags.md from the commands' option classes; a test holds it current."""

import sys
from pathlib import Path

from quire.config.compatibility import UNBUILT, UNBUILT_ALIASES, UNBUILT_COMMANDS
from quire.entrypoints.cli.command_line import CommandLine
from quire.entrypoints.cli.flags import Flag, default_text
from quire.entrypoints.cli.help import option_kind, unbuilt_text
from quire.entrypoints.cli.main import COMMANDS, load_command

PAGE = Path(__file__).parent / "reference" / "flags.md"

INTRODUCTION = """\
# Commands and flags

Written by `make docs` from the option classes; do not edit.

Underscores and dashes are equal in flags. A switch takes `--x` or `--no-x`, and `--enable-x` goes with `--disable-x`.
Sizes may be written `4k` (4,000), `1.5k` (1,500) or `4K` (4,096), likewise with m, M, g and G; they are marked *size*.
A flag that takes several values takes them after one another (`--stop A B`) or by repetition (`--stop A --stop B`).
`--config FILE.yaml` reads options whose keys are flag names in either spelling; the command line wins. Errors exit
with 2 where the caller can mend them, with 1 where we must.
"""

UNBUILT_INTRODUCTION = """\
## Flags of vLLM that are not built

A value that asks for what quire does anyway is accepted, so that a command can be moved over; any other is refused
with this hint. The same holds for the arguments of `LLM(...)`.

| flag | accepted values, and what to do instead |
|---|---|"""


def render_page() -> str:
    """The whole page."""
    shown: set[type] = set()
    commands = [_render_command(load_command(name).COMMAND, shown) for name in COMMANDS]
    return "\n".join([INTRODUCTION, *commands, *_render_unbuilt()]) + "\n"


def _render_command(command: CommandLine, shown: set[type]) -> str:
    """A command's options; those of a class that an earlier command has shown are left to it. Modifies `shown`."""
    bare_word = f" [{command.bare_word.upper()}]" if command.bare_word else ""
    lines = [f"## quire {command.name}{bare_word}", "", command.summary, ""]
    if command.examples:
        lines += ["```", *command.examples, "```", ""]
    repeated = []
    for group, option_class in command.groups.items():
        if option_class in shown:
            repeated.append(group)
            continue
        shown.add(option_class)
        lines += [f"### {group}", "", "| flag | value | default | meaning |", "|---|---|---|---|"]
        lines += [_render_flag(flag) for flag in command.flags if flag.group == group]
        lines += [""]
    if repeated:
        lines += [f"And the options of {', '.join(repeated)} as above.", ""]
    return "\n".join(lines)


def _render_flag(flag: Flag) -> str:
    names = " ".join(f"`{spelling}`" for spelling in flag.spellings)
    kind = option_kind(flag).strip("{}").replace(",", ", ") or "switch"
    if flag.option.human_integer:
        kind = "size"
    return f"| {names} | {kind} | {default_text(flag)} | {_escape(flag.option.help)} |"


def _render_unbuilt() -> list[str]:
    lines = [UNBUILT_INTRODUCTION]
    for name in sorted(UNBUILT):
        aliases = [alias for alias, target in UNBUILT_ALIASES.items() if target == name]
        names = " ".join(f"`{spelling}`" for spelling in ("--" + name.replace("_", "-"), *aliases))
        lines.append(f"| {names} | {_escape(unbuilt_text(UNBUILT[name]))} |")
    lines += ["", "Commands of vLLM that are not built:", "", "| command | instead |", "|---|---|"]
    return lines + [f"| `{name}` | {_escape(hint)} |" for name, hint in UNBUILT_COMMANDS.items()]


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Writes the page; with `--check`, only says whether it is current."""
    page = render_page()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
