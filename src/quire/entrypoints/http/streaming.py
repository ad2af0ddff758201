"""Server-sent events: frames, and the response that sends them."""

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.entrypoints.http.activity import Activity
from quire.entrypoints.http.answer_bodies import Usage
from quire.entrypoints.http.errors import describe, describe_unexpected
from quire.entrypoints.http.generation import Call
from quire.entrypoints.http.served_request import served_request_of
from quire.errors import QuireError

logger = logging.getLogger("quire.http")

DONE = b"data: [DONE]\n\n"


class Closeable(Protocol):
    """Answers that can be given up."""

    def close(self) -> None:
        """Ends in the engine what has not ended. May be called again."""


AnswersT = TypeVar("AnswersT", bound=Closeable)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How the streams of an API end.

    Attributes:
        done: The last bytes of a stream, after an error, too.
        error: An event from the encoded envelope of an error.
    """

    done: bytes
    error: Callable[[bytes], bytes]


def event(payload: bytes) -> bytes:
    """One event."""
    return b"data: " + payload + b"\n\n"


OPENAI_END = StreamEnd(DONE, event)


async def respond(
    call: Call[Any],
    open_answers: Callable[[], Coroutine[Any, Any, AnswersT]],
    encode_whole: Callable[[AnswersT], Awaitable[bytes]],
    encode_frames: Callable[[AnswersT], AsyncGenerator[bytes, None]],
    end: StreamEnd = OPENAI_END,
) -> Response:
    """Answers a request as one body of JSON, or as a stream of events if it asks for one.

    Args:
        call: The request.
        open_answers: Hands it to the engine.
        encode_whole: The body of the whole answer.
        encode_frames: The frames of a stream, without its end.
        end: How a stream ends.

    Raises:
        QuireError: Whatever `open_answers` raises, and for a whole answer what comes later, too.
    """
    run = call.state.activity.run
    if call.body.stream:
        answers = await run(call.request.receive, open_answers())
        return EventStream(encode_frames(answers), answers, call.state.activity, call.request.state.request_id, end)

    async def answer() -> bytes:
        with contextlib.closing(await open_answers()) as answers:
            return await encode_whole(answers)

    return Response(await run(call.request.receive, answer()), media_type="application/json")


class FrameEncoder:
    """Encodes the frames of one stream. What they share is encoded once.

    Args:
        shared: The fields before `choices`.
        include_usage: Every frame has a `usage`, null unless it is given.
    """

    def __init__(self, shared: dict[str, Any], *, include_usage: bool) -> None:
        self._head = b"data: " + msgspec.json.encode(shared)[:-1] + b',"choices":['
        self._plain_tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._encode = msgspec.json.Encoder().encode

    def frame(self, choice: msgspec.Struct | None, usage: Usage | None = None) -> bytes:
        """A frame with one choice, or with none."""
        body = b"" if choice is None else self._encode(choice)
        if usage is None:
            return self._head + body + self._plain_tail
        return self._head + body + b'],"usage":' + self._encode(usage) + b"}\n\n"


class EventStream(Response):
    """Sends frames until they end, then the end of its API's streams, such as `[DONE]`.

    An error on the way becomes an event of its own, for the status has been sent already. However the stream
    ends, the answers that it was made from are closed.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        answers: Closeable,
        activity: Activity,
        request_id: str,
        end: StreamEnd = OPENAI_END,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"}, media_type="text/event-stream")
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._frames = frames
        self._answers = answers
        self._activity = activity
        self._request_id = request_id
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        last = self._end.done
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._activity.run(receive, self._send_frames(send))
        except QuireError as error:
            served_request_of(scope).error = error
            last = self._end.error(describe(error, self._request_id)) + self._end.done
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("request %s failed", self._request_id)
            last = self._end.error(describe_unexpected(self._request_id)) + self._end.done
        finally:
            self._answers.close()
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_frames(self, send: Send) -> None:
        async with contextlib.aclosing(self._frames) as frames:
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
