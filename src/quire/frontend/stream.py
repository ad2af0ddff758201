"""The outputs of one request, as its reader sees them."""

import asyncio
from collections.abc import Callable

from quire.errors import DeadlineError, EngineDeadError, InvalidRequestError, RequestFailedError
from quire.frontend.processor import RequestState
from quire.types.ids import RequestId
from quire.types.outputs import RequestOutput


class OutputStream:
    """Iterate it to its end, or `close` it when leaving early. It has one reader.

    What the reader has not fetched yet is merged: at most one output waits, however slow the reader is.

    Args:
        state: Grows while the engine works.
        on_close: Called when the reader leaves; ends the request in the engine if it still runs.
    """

    def __init__(self, state: RequestState, on_close: Callable[["OutputStream"], None]) -> None:
        self.state = state
        self._on_close = on_close
        self._has_changed = False
        self._wakeup: asyncio.Future[None] | None = None
        self._cause: EngineDeadError | DeadlineError | None = None
        self._ended = False

    @property
    def request_id(self) -> RequestId:
        """Its id."""
        return self.state.request.request_id

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt as tokens, known before the first output."""
        return self.state.request.prompt_token_ids

    def __aiter__(self) -> "OutputStream":
        return self

    async def __anext__(self) -> RequestOutput:
        """The next output.

        Raises:
            RequestFailedError: The request failed in the engine.
            InvalidRequestError: It failed there, of its own parameters.
            EngineDeadError: The engine has ended.
            DeadlineError: The request's time is over.
        """
        while not self._ended:
            if not self._has_changed:
                await self._wait()
            self._has_changed = False
            if (output := self.state.take()) is not None:
                self._ended = output.finished
                if output.error is not None:
                    kind = InvalidRequestError if output.blames_request else RequestFailedError
                    raise self._cause or kind(output.error)
                return output
        raise StopAsyncIteration

    def close(self) -> None:
        """Ends the request unless it has ended. Returns at once; may be called again."""
        self._ended = True
        self._on_close(self)

    def notify(self) -> None:
        """Lets the reader look at the state again."""
        self._has_changed = True
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def blame(self, error: EngineDeadError | DeadlineError) -> None:
        """Says what the state has failed of. The error is copied: each reader raises its own."""
        self._cause = type(error)(error.message, hint=error.hint)

    async def _wait(self) -> None:
        """An `asyncio.Event` of one reader, at a third of its cost: it is waited for once per token."""
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None
