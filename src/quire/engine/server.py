"""The engine's side of the socket: one thread reads, one steps, one writes."""

import enum
import logging
import queue
import socket
import threading
from typing import Protocol

from quire.engine import wire
from quire.engine.collector import rare_collections
from quire.engine.loop import EngineLoop
from quire.engine.outbox import Outbox
from quire.engine.port import EngineInfo
from quire.errors import ConfigError, EngineError, EngineProtocolError, QuireError

logger = logging.getLogger("quire.engine")


class Profiler(Protocol):
    """Records traces of what the device and its host do. Called between steps, on the thread that steps."""

    def start_profile(self) -> None:
        """Begins to record a trace.

        Raises:
            ConfigError: There is no folder for traces, or nothing can be written to it.
            InvalidRequestError: One is being recorded already.
        """

    def stop_profile(self) -> str:
        """Ends it and returns the trace's path.

        Raises:
            InvalidRequestError: None is being recorded.
        """


class _Wake(enum.Enum):
    """Put into the inbox when a request that was being prepared can run."""

    WAKE = enum.auto()


_WAKE = _Wake.WAKE


class EngineServer:
    """Runs a loop for the front end at the other end of `connection` until that end closes.

    The thread that calls `run` steps. A front end that reads slowly delays nothing but its own outputs, and an
    engine never outlives its front end: the end of the connection ends `run`.
    """

    def __init__(
        self, loop: EngineLoop, connection: socket.socket, info: EngineInfo, profiler: Profiler | None = None
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._info = info
        self._profiler = profiler
        self._inbox: queue.SimpleQueue[wire.Add | wire.Abort | wire.Profile | _Wake | None] = queue.SimpleQueue()
        self._outbox = Outbox()
        loop.notify_ready(lambda: self._inbox.put(_WAKE))

    def run(self) -> None:
        """Serves until the front end closes the connection. Returns with steps abandoned, not finished."""
        self._connection.sendall(wire.encode(wire.Ready(info=self._info)))
        threading.Thread(target=self._read, name="quire-engine-read", daemon=True).start()
        writer = threading.Thread(target=self._write, name="quire-engine-write", daemon=True)
        writer.start()
        try:
            with rare_collections():
                self._step_until_closed()
        finally:
            self._outbox.close()
            writer.join(timeout=1.0)

    def _step_until_closed(self) -> None:
        while self._take_messages():
            outputs = self._loop.step()
            if outputs.deltas or outputs.stats is not None:
                self._outbox.put(outputs)

    def _take_messages(self) -> bool:
        """Applies what has come in, waiting for it if there is nothing else to do. False at the end."""
        wait = not self._loop.can_step
        while True:
            try:
                message = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if message is None:
                return False
            if message is not _WAKE:
                self._apply(message)
            wait = False

    def _apply(self, message: wire.Add | wire.Abort | wire.Profile) -> None:
        if isinstance(message, wire.Add):
            self._loop.add(message.request)
        elif isinstance(message, wire.Abort):
            for request_id in message.request_ids:
                self._loop.abort(request_id)
        else:
            self._outbox.put_answer(self._profile(message.start))

    def _profile(self, start: bool) -> wire.Profiled:
        """Begins or ends a trace. A failure, such as a full disk, is the answer, and not the end of the engine."""
        try:
            if self._profiler is None:
                raise ConfigError("this engine records no traces")
            if start:
                self._profiler.start_profile()
                return wire.Profiled()
            return wire.Profiled(path=self._profiler.stop_profile())
        except QuireError as error:
            return wire.Profiled(kind=type(error).__name__, message=error.message, hint=error.hint, param=error.param)
        except Exception as error:
            logger.exception("the trace is lost")
            return wire.Profiled(kind=EngineError.__name__, message=f"the trace is lost: {error}")

    def _read(self) -> None:
        try:
            while (body := wire.read_frame(self._connection)) is not None:
                message = wire.decode_to_engine(body)
                if isinstance(message, wire.Start):
                    raise EngineProtocolError("a second Start message")
                self._inbox.put(message)
        except OSError as error:
            logger.debug("the front end's connection broke: %s", error)
        except EngineProtocolError:
            logger.exception("ending the engine")
        finally:
            self._inbox.put(None)

    def _write(self) -> None:
        try:
            while messages := self._outbox.take():
                for message in messages:
                    self._connection.sendall(wire.encode(message))
        except OSError as error:
            logger.debug("the front end does not read any more: %s", error)
