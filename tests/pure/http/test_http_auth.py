"""Keys: which routes need one, and what a wrong one gets."""

import hashlib
from typing import Any

import pytest
from fastapi import FastAPI

from quire.entrypoints.http.auth import KeyRing
from quire.errors import AuthenticationError

pytestmark = pytest.mark.anyio

OPEN_PATHS = {"/health", "/ready", "/ping"}


def _routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path that the application answers."""
    paths = app.openapi()["paths"]
    return [(method.upper(), path.replace("{name}", "fake")) for path in paths for method in paths[path]]


async def test_every_route_but_the_probes_needs_a_key(serve: Any) -> None:
    async with serve(api_key=("secret",), with_profiles=True) as server:
        routes = _routes(server.app)
        statuses = {route: (await server.client.request(*route)).status_code for route in routes}
    assert len(routes) >= 11
    assert {("POST", "/start_profile"), ("POST", "/stop_profile")} < set(routes)
    assert statuses == {route: 200 if route[1] in OPEN_PATHS else 401 for route in routes}


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1//models", "/V1/models", "/v1/models/", "/v1/%6dodels", "/health/../v1/models"]
)
async def test_odd_paths_open_nothing(serve: Any, path: str) -> None:
    async with serve(api_key=("secret",)) as server:
        response = await server.client.get(f"http://test{path}")
    assert response.status_code in (401, 404)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer secret", 200),
        ("bearer  other-secret ", 200),
        ("Bearer wrong", 401),
        ("Bearer ", 401),
        ("secret", 401),
        ("Basic secret", 401),
        ("Bearer sécret", 401),
        (None, 401),
    ],
)
async def test_key(serve: Any, header: str | None, status: int) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    async with serve(api_key=("secret", "other-secret")) as server:
        response = await server.client.get("/v1/models", headers=headers)
    assert response.status_code == status
    if status == 401:
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("AuthenticationError", 401)
        assert response.headers["www-authenticate"] == "Bearer"


async def test_a_body_is_not_read_without_a_key(serve: Any) -> None:
    read = 0

    async def pieces() -> Any:
        nonlocal read
        for _ in range(10):
            read += 1
            yield b" " * 1000

    async with serve(api_key=("secret",)) as server:
        response = await server.client.post("/v1/completions", content=pieces())
    assert response.status_code == 401
    assert read <= 1


async def test_without_keys_everything_is_open(serve: Any) -> None:
    async with serve() as server:
        response = await server.client.get("/v1/models", headers={"authorization": "Bearer whatever"})
    assert response.status_code == 200


async def test_keys_do_not_share_cached_prefixes(serve: Any) -> None:
    async with serve(api_key=("one", "two")) as server:
        salts = []
        for key, salt in (("one", None), ("two", None), ("one", "team"), ("two", "team"), ("one", "team")):
            headers = {"authorization": f"Bearer {key}"}
            body = {"prompt": "a", "max_tokens": 1, "cache_salt": salt}
            await server.post("/v1/completions", body, headers=headers)
            salts.append(server.port.requests[-1].cache_salt)
    assert len(set(salts[:4])) == 4
    assert salts[2] == salts[4]
    assert all(salts)


def test_the_ring_keeps_digests_only() -> None:
    ring = KeyRing(("secret",))
    assert b"secret" not in repr(vars(ring)).encode()
    assert hashlib.sha256(b"secret").digest() in vars(ring)["_digests"]
    with pytest.raises(AuthenticationError):
        ring.check(b"Bearer " + hashlib.sha256(b"secret").digest())
