"""The front end's side of the socket, and the engine process behind it."""

import asyncio
import contextlib
import logging
import socket
import struct
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from quire import errors
from quire.config.engine import EngineConfig
from quire.engine import wire
from quire.engine.port import EngineInfo
from quire.errors import EngineDeadError, EngineError, EngineProtocolError, QuireError
from quire.types.deltas import StepOutputs
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest

logger = logging.getLogger("quire.engine")

STOP_SECONDS = 5.0
"""How long an engine gets to end by itself after its connection has closed."""


class EngineProcess:
    """An engine process that has connected back to us, not yet told what to load.

    The socket lies in a folder that only this user may enter, exists until the engine has connected, and accepts
    only the process that we started.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls, command: Sequence[str]) -> "EngineProcess":
        """Starts `command` with the path of a Unix socket as its last argument, and waits until it connects.

        Raises:
            EngineDeadError: It ended before.
        """
        with tempfile.TemporaryDirectory(prefix="quire-") as folder:
            path = Path(folder) / "engine.sock"
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(1)
            listener.setblocking(False)
            process = await asyncio.create_subprocess_exec(*command, str(path), stdin=asyncio.subprocess.DEVNULL)
            try:
                connection = await _accept(listener, process)
            finally:
                listener.close()
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        return cls(process, reader, writer)

    async def start(self, config: EngineConfig, log_level: str, log_format: str = "text") -> "EngineClient":
        """Tells the engine what to load and waits until it is ready.

        Raises:
            QuireError: What stopped the engine from starting, as it was raised there.
            EngineDeadError: The engine ended without a word.
        """
        client = EngineClient(self._reader, self._writer, self.process)
        try:
            await client.start(wire.Start(config=config, log_level=log_level, log_format=log_format))
        except BaseException:
            await self.close()
            raise
        return client

    async def close(self) -> None:
        """Ends the process at once: it holds no requests yet, and while it loads it does not listen."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await EngineClient(self._reader, self._writer, self.process).close()


async def _accept(listener: socket.socket, process: asyncio.subprocess.Process) -> socket.socket:
    loop = asyncio.get_running_loop()
    accepted = asyncio.ensure_future(loop.sock_accept(listener))
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait([accepted, ended], return_when=asyncio.FIRST_COMPLETED)
        if not accepted.done():
            raise EngineDeadError(f"the engine process ended with code {process.returncode} before it connected")
        connection, _ = accepted.result()
    finally:
        for future in (accepted, ended):
            future.cancel()
    peer = peer_process(connection)
    if peer is not None and peer != process.pid:
        connection.close()
        raise EngineProtocolError(f"process {peer} connected in place of the engine {process.pid}")
    return connection


def peer_process(connection: socket.socket) -> int | None:
    """The process at the other end of a Unix socket; None where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = struct.Struct("3i")
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    pid: int = credentials.unpack(packed)[0]
    return pid


class EngineClient:
    """An `EnginePort` over a socket. The end of the connection is the death of the engine."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: asyncio.subprocess.Process | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._process = process
        self._info: EngineInfo | None = None
        self._profiles: deque[asyncio.Future[str | None]] = deque()

    @property
    def info(self) -> EngineInfo:
        """What the engine has settled on."""
        assert self._info is not None, "the engine is not ready"
        return self._info

    async def start(self, message: wire.Start | None = None) -> None:
        """Sends `message`, if any, and waits for the engine to be ready."""
        if message is not None:
            await self._send(message)
        answer = await self._receive()
        if isinstance(answer, wire.StartFailed):
            raise _rebuild_error(answer.kind, answer.message, answer.hint, answer.param)
        if not isinstance(answer, wire.Ready):
            raise EngineProtocolError(f"the engine sent {type(answer).__name__} before it was ready")
        self._info = answer.info

    async def add(self, request: GenerationRequest) -> None:
        """Sends a request."""
        await self._send(wire.Add(request=request))

    async def abort(self, request_ids: list[RequestId]) -> None:
        """Ends requests."""
        await self._send(wire.Abort(request_ids=request_ids))

    async def start_profile(self) -> None:
        """Begins to record a trace; `receive` takes the answer."""
        await self._profile(start=True)

    async def stop_profile(self) -> str:
        """Ends the trace; `receive` takes the answer, its path."""
        path = await self._profile(start=False)
        assert path is not None, "the engine ended a trace and named no file"
        return path

    async def receive(self) -> list[StepOutputs]:
        """Waits for the next outputs. Answers that come before them go to those who wait for them."""
        try:
            while not isinstance(message := await self._receive(), wire.Outputs):
                if not isinstance(message, wire.Profiled):
                    raise EngineProtocolError(f"the engine sent {type(message).__name__} where outputs were due")
                self._take_answer(message)
        except QuireError as error:
            self._fail_profiles(error)
            raise
        return message.outputs

    async def close(self) -> None:
        """Closes the connection, which ends the engine, and waits for its process."""
        self._fail_profiles(EngineDeadError("the engine was shut down"))
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            logger.warning("the engine process %d did not end within %.0f s: killed", self._process.pid, STOP_SECONDS)
            self._process.kill()
            await self._process.wait()

    async def _profile(self, *, start: bool) -> str | None:
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._profiles.append(answer)
        try:
            await self._send(wire.Profile(start=start))
            return await answer
        finally:
            answer.cancel()

    def _take_answer(self, message: wire.Profiled) -> None:
        """Gives it to the oldest question, whose caller may have left."""
        if not self._profiles:
            raise EngineProtocolError("the engine sent Profiled unasked")
        answer = self._profiles.popleft()
        if answer.done():
            return
        if message.kind is None:
            answer.set_result(message.path)
        else:
            answer.set_exception(_rebuild_error(message.kind, message.message, message.hint, message.param))

    def _fail_profiles(self, error: QuireError) -> None:
        while self._profiles:
            answer = self._profiles.popleft()
            if not answer.done():
                answer.set_exception(error)

    async def _send(self, message: wire.ToEngine) -> None:
        try:
            self._writer.write(wire.encode(message))
            await self._writer.drain()
        except OSError as error:
            raise self._death() from error

    async def _receive(self) -> wire.FromEngine:
        try:
            header = await self._reader.readexactly(wire.LENGTH.size)
            return wire.decode_from_engine(await self._reader.readexactly(wire.frame_length(header)))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise self._death() from error

    def _death(self) -> EngineDeadError:
        code = self._process.returncode if self._process else None
        ending = "" if code is None else f" with code {code}"
        return EngineDeadError(f"the engine process has ended{ending}", hint="the server's log says why")


def _rebuild_error(kind_name: str, message: str, hint: str | None, param: str | None) -> QuireError:
    """The error that the engine raised, as the class that it had there."""
    kind = getattr(errors, kind_name, None)
    if isinstance(kind, type) and issubclass(kind, QuireError):
        error = kind.__new__(kind)
        QuireError.__init__(error, message, hint=hint, param=param)
        return error
    return EngineError(message, hint=hint)


def serve_socket(path: str) -> socket.socket:
    """The engine's end of the connection, made from the path that `EngineProcess.spawn` gave."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection
