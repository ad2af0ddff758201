"""Runs the application on a socket, from the first connection to the last stream after SIGTERM."""

import asyncio
import contextlib
import ipaddress
import json
import logging
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from quire.config.server import ServerConfig
from quire.entrypoints.http.connection import BoundedHttpProtocol
from quire.entrypoints.http.state import ServerState, state_of
from quire.entrypoints.http.stats_log import log_stats
from quire.errors import ConfigError

logger = logging.getLogger("quire.http")

KEEP_ALIVE_SECONDS = 75
FINAL_EVENT_SECONDS = 5
"""How long the last replies may take to leave after everything was stopped."""


def bind(server: ServerConfig) -> socket.socket:
    """Binds, without listening yet, so that a port in use is noticed before a model is loaded.

    Raises:
        ConfigError: The address cannot be bound, or strangers could reach it and no key is needed.
    """
    if is_exposed(server) and not server.allow_anonymous:
        raise ConfigError(
            f"{server.host or 'every address'} can be reached from other machines, and no API key is set",
            hint="set --api-key, QUIRE_API_KEY or --api-keys; or leave --host at 127.0.0.1; "
            "or --allow-anonymous to serve whoever comes",
            param="host",
        )
    try:
        return _bind_unix(Path(server.uds)) if server.uds else _bind_tcp(server.host, server.port)
    except OSError as error:
        place = server.uds or f"{server.host}:{server.port}"
        raise ConfigError(
            f"cannot bind {place}: {error.strerror or error}",
            hint="another --port, or 0 for a free one" if not server.uds else "another --uds",
            param="uds" if server.uds else "port",
        ) from error


def _bind_tcp(host: str, port: int) -> socket.socket:
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = infos[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_unix(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def address_of(listener: socket.socket) -> str:
    """Where a client finds the listener."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def greeting(listener: socket.socket, server: ServerConfig, model_name: str) -> str:
    """What to show when the server is ready: its address, and a request to try."""
    address = address_of(listener)
    reachable = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    body = {"model": model_name, "messages": [{"role": "user", "content": "Hello!"}]}
    where = f"{reachable}/v1/chat/completions"
    if server.uds:
        where = f"--unix-socket {server.uds} http://localhost/v1/chat/completions"
    key = ' -H "Authorization: Bearer $QUIRE_API_KEY"' if server.needs_key else ""
    return (
        f"quire serves {model_name} at {address}\n"
        f"Try: curl {where} -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"
    )


def is_exposed(server: ServerConfig) -> bool:
    """Whether strangers could reach a server that needs no key. A Unix socket is for its owner only."""
    if server.uds or server.needs_key or server.host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(server.host).is_loopback
    except ValueError:
        return True


def warn_if_open(server: ServerConfig) -> None:
    """Warns of a server that anybody on the network can use."""
    if is_exposed(server):
        logger.warning("listening on %s without a key: anybody who reaches it can use it", server.host or "*")
        logger.warning("hint: set --api-key or QUIRE_API_KEY, or leave --host at 127.0.0.1")


async def serve_app(
    app: FastAPI, listener: socket.socket, server: ServerConfig, announce: Callable[[str], None] | None = None
) -> None:
    """Serves `app` until SIGTERM or SIGINT, then drains: `/health` turns to 503, new work is refused, streams
    get `shutdown_timeout` seconds to finish, and what is left then ends with an error event. A second signal
    ends it at once. Closes the listener; does not close the engine.

    Args:
        app: What `create_app` made.
        listener: What `bind` made.
        server: The settings that `app` was made with.
        announce: Called with the greeting once the server answers; by default it is logged.
    """
    state = state_of(app)
    state.engine.start()
    warn_if_open(server)
    runner = _Server(
        uvicorn.Config(
            app,
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="debug" if server.log_level == "debug" else "warning",
            access_log=server.log_level == "debug",
            server_header=False,
            root_path=server.root_path,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FINAL_EVENT_SECONDS,
        )
    )
    runner.on_started = lambda: (announce or logger.info)(greeting(listener, server, state.model_names[0]))
    tasks = [asyncio.create_task(_drain_on_signal(runner, state, server.shutdown_timeout))]
    if not server.disable_log_stats and server.log_stats_interval > 0:
        tasks.append(asyncio.create_task(log_stats(lambda: state.metrics.stats, server.log_stats_interval)))
    try:
        await runner.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        _release(listener, server.uds)


def _release(listener: socket.socket, path: str | None) -> None:
    listener.close()
    if path:
        Path(path).unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us and tells when it answers."""

    on_started: Callable[[], None]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self.on_started()


async def _drain_on_signal(runner: _Server, state: ServerState, timeout_seconds: float) -> None:
    signalled = asyncio.Queue[signal.Signals]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.put_nowait, number)
    try:
        first = await signalled.get()
        logger.info("%s: draining %d requests", first.name, state.activity.num_running)
        drain = asyncio.create_task(state.activity.drain(timeout_seconds))
        second = asyncio.create_task(signalled.get())
        await asyncio.wait([drain, second], return_when=asyncio.FIRST_COMPLETED)
        state.activity.stop()
        drain.cancel()
        second.cancel()
    finally:
        runner.should_exit = True
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
