"""How a server on a real socket stops."""

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire.config.server import ServerConfig
from quire.entrypoints.http.server import bind
from quire.errors import ConfigError

pytestmark = pytest.mark.anyio

LONG = {"prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "seed": 1, "stream": True}


async def test_sigterm_lets_streams_finish(run_server: Any) -> None:
    async with run_server() as running, httpx.AsyncClient() as client, httpx.AsyncClient() as late:
        activity = running.harness.app.state.server.activity
        async with client.stream("POST", f"{running.url}/v1/completions", json=LONG) as response:
            pieces = response.aiter_raw()
            first = await anext(pieces)
            running.harness.port.may_step.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            await running.harness.until(lambda: activity.draining)
            health = await late.get(f"{running.url}/health")
            refused = await late.post(f"{running.url}/v1/completions", json=LONG)
            running.harness.port.may_step.set()
            content = first + b"".join([piece async for piece in pieces])
        await running.task
    assert (health.status_code, refused.status_code) == (503, 503)
    assert content.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"length"' in content
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*running.address)


@pytest.mark.parametrize("twice", [False, True])
async def test_what_does_not_finish_gets_a_final_event(run_server: Any, twice: bool) -> None:
    async with run_server(shutdown_timeout=60.0 if twice else 0.0) as running, httpx.AsyncClient() as client:
        async with client.stream("POST", f"{running.url}/v1/completions", json=LONG) as response:
            pieces = response.aiter_raw()
            await anext(pieces)
            running.harness.port.may_step.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            if twice:
                await running.harness.until(lambda: running.harness.app.state.server.activity.draining)
                os.kill(os.getpid(), signal.SIGINT)
            content = b"".join([piece async for piece in pieces])
        await running.task
    *_, error, done, rest = content.split(b"\n\n")
    assert b"ServiceUnavailableError" in error
    assert (done, rest) == (b"data: [DONE]", b"")


async def test_a_unix_socket_is_private_and_goes_away(run_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "quire.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with run_server(uds=str(path)) as running:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert f"--unix-socket {path}" in running.greeting
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
            response = await client.get("http://localhost/health")
        with pytest.raises(ConfigError, match="cannot bind"):
            bind(ServerConfig(uds=str(path)))
    assert response.status_code == 200
    assert not path.exists()
