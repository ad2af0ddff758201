"""`quire chat`: a conversation with a running server."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from quire.config.option import option
from quire.entrypoints.cli.answer import show_answer
from quire.entrypoints.cli.command_line import Arguments, CommandLine, GeneralOptions
from quire.entrypoints.cli.server_connection import ServerConnection, ServerOptions
from quire.entrypoints.cli.server_environment import find_api_key
from quire.entrypoints.cli.terminal import configure_logging
from quire.errors import QuireError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How the conversation goes."""

    system_prompt: str | None = option(None, basic=True, help="What the model is told before the conversation.")
    temperature: float | None = option(None, help="0 for the most likely answer; default is the server's.")
    max_tokens: int | None = option(None, human_integer=True, help="Tokens per answer; default is the server's.")


COMMAND = CommandLine(
    name="chat",
    summary="Chat with a running server. Ctrl-C stops an answer, Ctrl-D ends the conversation.",
    groups={"server": ServerOptions, "chat": ChatOptions, "general": GeneralOptions},
    examples=("quire chat", 'quire chat -q "Why is the sky blue?"'),
)


def run(arguments: Arguments) -> int:
    """Asks once with `--quick`, otherwise until the input ends.

    Raises:
        QuireError: The server cannot be reached or refuses the first question.
    """
    configure_logging(arguments.make(GeneralOptions).log_level)
    server, options = arguments.make(ServerOptions), arguments.make(ChatOptions)
    with ServerConnection(server.url, find_api_key(server.api_key)) as connection:
        conversation = Conversation(connection, server.model_name or connection.first_model(), options)
        if server.quick is not None:
            show_answer(conversation.ask(server.quick), stats=server.stats)
            return 0
        _converse(conversation, stats=server.stats)
    return 0


class Conversation:
    """The turns so far. Each answer becomes part of the next question's context."""

    def __init__(self, connection: ServerConnection, model: str, options: ChatOptions) -> None:
        self.model = model
        self._connection = connection
        self._messages: list[dict[str, str]] = []
        if options.system_prompt:
            self._messages.append({"role": "system", "content": options.system_prompt})
        given = {"temperature": options.temperature, "max_tokens": options.max_tokens}
        self._sampling = {name: value for name, value in given.items() if value is not None}

    def ask(self, text: str) -> Iterator[str]:
        """Yields the answer piece by piece. What was received is remembered, also of an answer that breaks off;
        a question without any answer is forgotten.

        Raises:
            QuireError: The server refuses, or the connection breaks.
        """
        self._messages.append({"role": "user", "content": text})
        body: dict[str, Any] = {"model": self.model, "messages": self._messages, **self._sampling}
        pieces: list[str] = []
        try:
            for event in self._connection.stream("/chat/completions", body):
                piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self._messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self._messages.pop()


def _converse(conversation: Conversation, *, stats: bool) -> None:
    if sys.stdin.isatty():
        print(f"chatting with {conversation.model}; Ctrl-D ends", file=sys.stderr)
    for text in read_lines("> "):
        try:
            show_answer(conversation.ask(text), stats=stats)
        except KeyboardInterrupt:
            print(" (stopped)", file=sys.stderr)
        except QuireError as error:
            print(f"error: {error}", file=sys.stderr)


def read_lines(prompt: str, read: Callable[[str], str] = input) -> Iterator[str]:
    """Lines that are not blank, until the input ends. The prompt is shown to people only."""
    while True:
        try:
            line = read(prompt if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line
