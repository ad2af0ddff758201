"""`quire chat` and `quire complete` against a small server."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import pytest

from quire.entrypoints.cli.chat import ChatOptions, Conversation
from quire.entrypoints.cli.main import main
from quire.entrypoints.cli.server_connection import ServerConnection
from quire.errors import EngineError, InvalidRequestError

ServeFake = Callable[[Any], Any]
THREE_TOKENS = ChatOptions(max_tokens=3)


def with_server(fake: Any, serve_fake: ServeFake, work: Callable[[str], Any]) -> Any:
    """Runs blocking `work` with the address of the API, beside the server."""

    async def both() -> Any:
        async with serve_fake(fake):
            return await asyncio.to_thread(work, f"{fake.url}/v1")

    return asyncio.run(both())


def ask(url: str, *questions: str, options: ChatOptions = THREE_TOKENS) -> list[str]:
    with ServerConnection(url, "key") as connection:
        conversation = Conversation(connection, "m", options)
        return ["".join(conversation.ask(question)) for question in questions]


def test_a_conversation_remembers(fake_server: Any, serve_fake: ServeFake) -> None:
    fake = fake_server()
    options = ChatOptions(system_prompt="be brief", max_tokens=2, temperature=0.0)
    answers = with_server(fake, serve_fake, lambda url: ask(url, "one", "two", options=options))
    assert answers == ["xx", "xx"]
    assert fake.bodies[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "xx"},
        {"role": "user", "content": "two"},
    ]
    assert fake.bodies[0]["temperature"] == 0.0
    assert "authorization: bearer key" in fake.heads[0].lower()


def test_a_question_without_an_answer_is_forgotten(fake_server: Any, serve_fake: ServeFake, wire: Any) -> None:
    async def refuse(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(wire.plain("400 Bad Request", b'{"error": {"message": "too long"}}'))

    fake = fake_server(answers={0: refuse})

    def work(url: str) -> None:
        with ServerConnection(url, None) as connection:
            conversation = Conversation(connection, "m", ChatOptions(max_tokens=1))
            with pytest.raises(InvalidRequestError, match="the server answered 400: too long"):
                list(conversation.ask("one"))
            assert list(conversation.ask("two")) == ["x", ""]

    with_server(fake, serve_fake, work)
    assert fake.bodies[1]["messages"] == [{"role": "user", "content": "two"}]


def test_an_answer_that_breaks_off_is_an_error(fake_server: Any, serve_fake: ServeFake, wire: Any) -> None:
    async def break_off(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(wire.stream_head + wire.chunked(wire.event(choices=[{"delta": {"content": "a"}}])))
        writer.write(wire.chunked(wire.event(error={"message": "engine lost"})) + b"0\r\n\r\n")

    def work(url: str) -> None:
        with pytest.raises(EngineError, match="engine lost"):
            ask(url, "one")

    with_server(fake_server(answers={0: break_off}), serve_fake, work)


def test_one_quick_question(fake_server: Any, serve_fake: ServeFake, capsys: pytest.CaptureFixture[str]) -> None:
    fake = fake_server()
    words = ["chat", "-q", "hello", "--max-tokens", "4", "--stats"]
    assert with_server(fake, serve_fake, lambda url: main([*words, "--url", url])) == 0
    captured = capsys.readouterr()
    assert captured.out == "xxxx\n"
    assert "4 pieces in" in captured.err
    assert fake.bodies[0]["model"] == "fake-model"


def test_lines_of_the_input(
    fake_server: Any, serve_fake: ServeFake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    fake = fake_server()
    assert with_server(fake, serve_fake, lambda url: main(["chat", "--url", url, "--max-tokens", "2"])) == 0
    assert capsys.readouterr().out == "xx\nxx\n"
    assert len(fake.bodies[1]["messages"]) == 3


def test_complete(fake_server: Any, serve_fake: ServeFake, capsys: pytest.CaptureFixture[str]) -> None:
    fake = fake_server()
    words = ["complete", "-q", "Once", "--max-tokens", "3", "--model-name", "m"]
    assert with_server(fake, serve_fake, lambda url: main([*words, "--url", url])) == 0
    assert capsys.readouterr().out == "xxx\n"
    assert (fake.bodies[0]["prompt"], fake.bodies[0]["model"]) == ("Once", "m")


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-q", "x", "--url", "http://127.0.0.1:9/v1"]) == 2
    assert "hint: start one with `quire serve`" in capsys.readouterr().err
