"""Traces on demand: two routes, of a server that was given a folder for them."""

from typing import Any

import pytest

pytestmark = pytest.mark.anyio


async def test_a_profile_from_start_to_stop(serve: Any) -> None:
    async with serve(with_profiles=True) as server:
        started = await server.client.post("/start_profile")
        assert server.port.recording
        stopped = await server.client.post("/stop_profile")
    assert (started.status_code, started.content) == (200, b"")
    assert (stopped.status_code, stopped.json()) == (200, {"path": "/traces/quire-1.json.gz"})


async def test_one_profile_at_a_time(serve: Any) -> None:
    async with serve(with_profiles=True) as server:
        early = await server.client.post("/stop_profile")
        await server.client.post("/start_profile")
        twice = await server.client.post("/start_profile")
    assert early.json()["error"] == {
        "message": "no profile is being recorded\nhint: start one first",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
    assert (early.status_code, twice.status_code) == (400, 400)
    assert "recorded already" in twice.json()["error"]["message"]


async def test_a_dead_engine_records_nothing(serve: Any) -> None:
    async with serve(with_profiles=True) as server:
        server.engine.start()
        server.port.die()
        await server.until(lambda: not server.engine.is_healthy)
        response = await server.client.post("/start_profile")
    assert response.status_code == 503


@pytest.mark.parametrize("path", ["/start_profile", "/stop_profile"])
async def test_a_server_without_a_folder_has_no_such_routes(quiet: Any, path: str) -> None:
    response = await quiet.client.post(path)
    unknown = await quiet.client.post("/unknown")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "NotFoundError")
    assert response.text == unknown.text.replace("/unknown", path)
