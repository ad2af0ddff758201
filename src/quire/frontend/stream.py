"""The outputs of one request, as its reader sees them."""

import asyncio
from collections.abc import Callable

from quire.errors import EngineDeadError, RequestFailedError
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
        self._changed = asyncio.Event()
        self._death: EngineDeadError | None = None
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
            EngineDeadError: The engine has ended.
        """
        while not self._ended:
            await self._changed.wait()
            self._changed.clear()
            if (output := self.state.take()) is not None:
                self._ended = output.finished
                if output.error is not None:
                    raise self._death or RequestFailedError(output.error)
                return output
        raise StopAsyncIteration

    def close(self) -> None:
        """Ends the request unless it has ended. Returns at once; may be called again."""
        self._ended = True
        self._on_close(self)

    def notify(self) -> None:
        """Lets the reader look at the state again."""
        self._changed.set()

    def die(self, error: EngineDeadError) -> None:
        """Makes the failure of the state one of the engine. The error is copied: each reader raises its own."""
        self._death = EngineDeadError(error.message, hint=error.hint)
