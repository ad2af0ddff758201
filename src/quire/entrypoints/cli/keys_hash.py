"""`quire keys hash`: the digest of an API key."""

import getpass
import sys

from quire.entrypoints.cli.command_line import Arguments, CommandLine
from quire.errors import ConfigError

COMMAND = CommandLine(
    name="keys hash",
    summary="Show the digest of an API key for the file of --api-keys. Reads the key from standard input.",
    groups={},
    examples=("quire keys hash", "pass show quire/alice | quire keys hash"),
)


def run(arguments: Arguments) -> int:
    """Prints the digest of a key that is typed in or piped in; never an argument, which every user could see.

    Raises:
        ConfigError: There is none.
    """
    key = (getpass.getpass("API key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not key:
        raise ConfigError("no key was given", hint="type it in, or pipe it to standard input")
    from quire.entrypoints.http.keys import show_digest

    print(show_digest(key))
    return 0
