"""`quire keys new`: a fresh API key."""

import json
import sys
from dataclasses import dataclass

from quire.config.option import option
from quire.entrypoints.cli.command_line import Arguments, CommandLine
from quire.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOptions:
    """Whose key it is."""

    name: str | None = option(None, basic=True, help="Name of the key's holder, shown in logs and metrics.")


COMMAND = CommandLine(
    name="keys new",
    summary="Make an API key. The key goes to standard output, its entry for --api-keys to standard error.",
    groups={"key": KeyOptions},
    bare_word="name",
    examples=("quire keys new alice", "quire keys new alice 2>>keys.yaml"),
)


def run(arguments: Arguments) -> int:
    """Prints a key, and the entry that lets it in. The key is kept nowhere.

    Raises:
        ConfigError: The holder has no name.
    """
    name = arguments.make(KeyOptions).name
    if not name:
        raise ConfigError("a key needs a name", hint="quire keys new alice", param="name")
    from quire.entrypoints.http.keys import new_key, show_digest

    key = new_key()
    print(f"- name: {json.dumps(name)}\n  key_sha256: {show_digest(key)}", file=sys.stderr)
    print(key)
    return 0
