"""`quire complete`: continues texts with a running server."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from quire.config.option import option
from quire.entrypoints.cli.answer import show_answer
from quire.entrypoints.cli.chat import read_lines
from quire.entrypoints.cli.command_line import Arguments, CommandLine, GeneralOptions
from quire.entrypoints.cli.server_connection import ServerConnection, ServerOptions
from quire.entrypoints.cli.server_environment import find_api_key
from quire.entrypoints.cli.terminal import configure_logging


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteOptions:
    """How texts are continued."""

    max_tokens: int | None = option(
        None, human_integer=True, basic=True, help="Tokens per text; default is the server's."
    )
    temperature: float | None = option(None, help="0 for the most likely continuation; default is the server's.")


COMMAND = CommandLine(
    name="complete",
    summary="Continue texts with a running server, each line by itself.",
    groups={"server": ServerOptions, "completion": CompleteOptions, "general": GeneralOptions},
    examples=('quire complete -q "Once upon a time" --max-tokens 50',),
)


def run(arguments: Arguments) -> int:
    """Continues one text with `--quick`, otherwise every line of the input.

    Raises:
        QuireError: The server cannot be reached or refuses.
    """
    configure_logging(arguments.make(GeneralOptions).log_level)
    server, options = arguments.make(ServerOptions), arguments.make(CompleteOptions)
    with ServerConnection(server.url, find_api_key(server.api_key)) as connection:
        model = server.model_name or connection.first_model()
        texts = [server.quick] if server.quick is not None else read_lines("> ")
        for text in texts:
            show_answer(_continue(connection, model, text, options), stats=server.stats)
    return 0


def _continue(connection: ServerConnection, model: str, text: str, options: CompleteOptions) -> Iterator[str]:
    given = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for event in connection.stream("/completions", body | {"model": model, "prompt": text}):
        yield "".join(choice["text"] for choice in event["choices"])
