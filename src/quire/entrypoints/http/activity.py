"""The generations that are under way, and the two things that can cut them short: their client, and the shutdown."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from quire.entrypoints.http.errors import ServerStoppingError

logger = logging.getLogger("quire.http")

ResultT = TypeVar("ResultT")


class Activity:
    """Counts generations and ends them.

    A generation runs as a task. When its client leaves or the server stops, the task is cancelled, and it aborts
    what it has in the engine on its way out.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._stopped = False

    @property
    def num_running(self) -> int:
        """Generations under way."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        """Whether new work is refused."""
        return self._draining

    def admit(self) -> None:
        """Refuses new work while the server drains.

        Raises:
            ServerStoppingError: It does.
        """
        if self._draining:
            raise ServerStoppingError("the server is shutting down and takes no new requests")

    async def run(self, receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Runs `work` for as long as the client is there and the server is not stopped.

        Args:
            receive: Where the client's leaving is announced; its body must have been read.
            work: Ends what it has in the engine when it is cancelled.

        Raises:
            ClientDisconnect: The client has left; `work` was cancelled.
            ServerStoppingError: The server stopped it; `work` was cancelled.
        """
        task = asyncio.create_task(work)
        gone = asyncio.create_task(_client_gone(receive))
        self._enter(task)
        try:
            await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            if task.cancelled() and self._stopped:
                raise ServerStoppingError("the server is shutting down; the request was ended early")
            return task.result()
        finally:
            await _cancel(gone)
            await _cancel(task)
            self._leave(task)

    async def drain(self, timeout_seconds: float) -> None:
        """Takes no new work, and waits for what is under way; what is left after the timeout is stopped."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        self.stop()

    def stop(self) -> None:
        """Takes no new work and stops what is under way."""
        self._draining = self._stopped = True
        if self._running:
            logger.warning("stopping %d requests that did not finish in time", len(self._running))
        for task in self._running:
            task.cancel()

    def _enter(self, task: asyncio.Task[Any]) -> None:
        self._running.add(task)
        self._idle.clear()
        if self._stopped:
            task.cancel()

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not self._running:
            self._idle.set()


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
