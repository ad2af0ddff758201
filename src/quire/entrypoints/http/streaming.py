"""Server-sent events: frames, and the response that sends them."""

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.entrypoints.http.activity import Activity
from quire.entrypoints.http.errors import describe, describe_unexpected
from quire.entrypoints.http.generation import Answers
from quire.entrypoints.http.responses import Usage
from quire.errors import QuireError

logger = logging.getLogger("quire.http")

DONE = b"data: [DONE]\n\n"


def event(payload: bytes) -> bytes:
    """One event."""
    return b"data: " + payload + b"\n\n"


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
    """Sends frames until they end, then `[DONE]`.

    An error on the way becomes an event of its own, for the status has been sent already. However the stream
    ends, the answers that it was made from are closed.
    """

    def __init__(
        self, frames: AsyncGenerator[bytes, None], answers: Answers, activity: Activity, request_id: str
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"}, media_type="text/event-stream")
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._frames = frames
        self._answers = answers
        self._activity = activity
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        last = DONE
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._activity.run(receive, self._send_frames(send))
        except QuireError as error:
            last = event(describe(error, self._request_id)) + DONE
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("request %s failed", self._request_id)
            last = event(describe_unexpected(self._request_id)) + DONE
        finally:
            self._answers.close()
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_frames(self, send: Send) -> None:
        async with contextlib.aclosing(self._frames) as frames:
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
