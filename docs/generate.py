"""Writes docs/reference from the code: flags from the commands' option classes, fields from the models that check
requests. A test holds the pages current."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from quire.config.compatibility import UNBUILT, UNBUILT_ALIASES, UNBUILT_COMMANDS
from quire.entrypoints.cli.command_line import CommandLine
from quire.entrypoints.cli.flags import Flag, default_text
from quire.entrypoints.cli.help import option_kind, unbuilt_text
from quire.entrypoints.cli.main import COMMANDS, load_command
from quire.entrypoints.http.anthropic.body import REFUSALS as MESSAGES
from quire.entrypoints.http.app import make_routers
from quire.entrypoints.http.docs_page import references, type_text
from quire.entrypoints.http.openapi import build_document
from quire.entrypoints.http.refusals import CHAT, COMPLETION
from quire.entrypoints.http.responses.body import REFUSALS as RESPONSES
from quire.frontend.answer.formats import reasoning_format_names, tool_format_names

FOLDER = Path(__file__).parent / "reference"

FIELDS_INTRODUCTION = """\
# Routes and fields

Written by `make docs` from the models that check requests; do not edit. `/openapi.json` of a running server says the
same for programs, and `/docs` for people.

A field that is null counts as left out. A field that is not listed passes unread, unless it would have shaped the
answer: those at the end of this page are refused with a hint, and so are misspelt names of listed ones.
"""

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


def render_flags() -> str:
    """The page of commands and flags."""
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


def render_fields() -> str:
    """The page of routes and fields."""
    document = build_document(make_routers())
    schemas = document["components"]["schemas"]
    lines = [FIELDS_INTRODUCTION]
    shown: dict[str, None] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}", "", operation["summary"], ""]
            content = operation.get("requestBody", {}).get("content", {})
            for body in content.values():
                lines += _render_model(body["schema"]["$ref"].rpartition("/")[2], schemas, shown)
    lines += ["## Parts of bodies", ""]
    rest = list(shown)
    for name in rest:
        lines += _render_nested(name, schemas, shown)
    return "\n".join([*lines, *_render_refusals(), *_render_formats()]) + "\n"


def _render_model(name: str, schemas: Mapping[str, Any], shown: dict[str, None]) -> Iterator[str]:
    """The fields of a body. Modifies `shown`."""
    schema = schemas[name]
    shown[name] = None
    yield from ("| field | type | meaning |", "|---|---|---|")
    for field, rule in schema.get("properties", {}).items():
        star = " (required)" if field in schema.get("required", ()) else ""
        yield f"| `{field}`{star} | {_escape(type_text(rule))} | {_escape(rule.get('description', ''))} |"
    yield ""


def _render_nested(name: str, schemas: Mapping[str, Any], shown: dict[str, None]) -> Iterator[str]:
    """The models that a body refers to, each once. Modifies `shown`."""
    for other in references(schemas[name].get("properties", {})):
        if other not in shown and "properties" in schemas[other]:
            yield from (f"### {other}", "", schemas[other].get("description", ""), "")
            yield from _render_model(other, schemas, shown)
            yield from _render_nested(other, schemas, shown)


def _render_refusals() -> list[str]:
    lines = ["## Fields that are refused", "", "| field | of | what to do |", "|---|---|---|"]
    tables = {"chat": CHAT, "completion": COMPLETION, "responses": RESPONSES, "messages": MESSAGES}
    for name in sorted({name for refusals in tables.values() for name in refusals}):
        kinds_by_hint: dict[str, list[str]] = {}
        for kind, refusals in tables.items():
            if name in refusals:
                kinds_by_hint.setdefault(refusals[name].hint, []).append(kind)
        lines += [f"| `{name}` | {', '.join(kinds)} | {_escape(hint)} |" for hint, kinds in kinds_by_hint.items()]
    return [*lines, ""]


def _render_formats() -> list[str]:
    tools = ", ".join(f"`{name}`" for name in tool_format_names())
    reasoning = ", ".join(f"`{name}`" for name in reasoning_format_names())
    return ["## Formats", "", f"`--tool-call-parser`: {tools}.", "", f"`--reasoning-parser`: {reasoning}."]


PAGES: Mapping[str, Callable[[], str]] = {"flags.md": render_flags, "fields.md": render_fields}


def main() -> int:
    """Writes the pages; with `--check`, only says whether they are current."""
    pages = {FOLDER / name: render() for name, render in PAGES.items()}
    if "--check" in sys.argv[1:]:
        return int(any(not path.exists() or path.read_text(encoding="utf-8") != text for path, text in pages.items()))
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
