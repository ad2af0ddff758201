"""Nothing but the probes answers without a key, however the path is written."""

import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Route

from quire.entrypoints.http import auth
from quire.entrypoints.http.auth import FailureThrottle, KeyRing
from quire.entrypoints.http.keys import keys_of_command_line, show_digest
from quire.errors import AuthenticationError, OverloadedError
from quire.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio

OPEN_PATHS = {"/health", "/ready"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "NONSENSE")
KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
async def locked(serve: Any) -> AsyncIterator[Any]:
    async with serve(api_key=("secret", "other-secret"), with_profiles=True) as server:
        yield server


@pytest.fixture(scope="module")
async def listening(run_server: Any) -> AsyncIterator[Any]:
    async with run_server(api_key=("secret",)) as running:
        yield running


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path in the route table, with values in place of names."""
    return [
        (method, "/".join("x" if part.startswith("{") else part for part in route.path.split("/")))
        for route in _flat(app.routes)
        for method in sorted(route.methods or ())
    ]


def _flat(entries: Any) -> Iterator[Route]:
    for entry in entries:
        if isinstance(entry, Route):
            yield entry
        else:
            # A mount or a socket has none, and would have to be walked in another way.
            yield from _flat(entry.original_router.routes)


async def test_every_route_needs_a_key(locked: Any) -> None:
    table = routes(locked.app)
    assert len(table) >= 15
    assert {("POST", "/v1/chat/completions"), ("POST", "/start_profile"), ("GET", "/metrics")} <= set(table)
    for method, path in table:
        response = await locked.client.request(method, path)
        assert (response.status_code == 200) == (path in OPEN_PATHS), (method, path)
        assert path in OPEN_PATHS or response.status_code == 401, (method, path)


async def test_methods_and_paths_that_do_not_exist_need_a_key_too(locked: Any) -> None:
    """Who has no key does not learn which routes there are."""
    paths = {path for _, path in routes(locked.app)} | {"/nowhere", "/v1", "/v1/completions/x", "/admin"}
    for path in sorted(paths):
        for method in METHODS:
            response = await locked.client.request(method, path)
            if response.status_code == 200:
                assert path in OPEN_PATHS, (method, path)
            else:
                assert response.status_code == 401, (method, path)
    assert (await locked.client.get("/nowhere", headers=KEY)).status_code == 404
    assert (await locked.client.get("/v1/completions", headers=KEY)).status_code == 405


async def test_a_wrong_key_reads_no_body_and_gets_the_envelope(locked: Any) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
        response = await locked.client.post("/v1/completions", content=b"{", headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"]) == (401, "AuthenticationError", 401)
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer  other-secret "}, 200),
        ({"x-api-key": "secret"}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({"authorization": "Bearer wrong", "x-api-key": "secret"}, 401),
        ({"authorization": "Bearer " + show_digest("secret")}, 401),
        ({"authorization": "Bearer secret\t"}, 200),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "secret"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"authorization": "Bearer secr\u00e9t".encode("latin-1")}, 401),
        ({"authorization": "Bearer secret,other-secret"}, 401),
        ({"cookie": "authorization=Bearer secret"}, 401),
    ],
)
async def test_what_counts_as_a_key(locked: Any, headers: dict[str, Any], status: int) -> None:
    response = await locked.client.get("/v1/models", headers=headers)
    assert response.status_code == status


async def test_a_key_in_the_address_does_not_count(locked: Any) -> None:
    response = await locked.client.get("/v1/models?api_key=secret&authorization=Bearer%20secret")
    assert response.status_code == 401


RAW_TARGETS = [
    "//v1/models",
    "/v1//models",
    "///v1/models",
    "/V1/models",
    "/v1/models/",
    "/v1/models/.",
    "/v1/models;x",
    "/v1/models?",
    "/v1/models#health",
    "/v1/%6dodels",
    "/%76%31/models",
    "/v1%2fmodels",
    "/%2e%2e/v1/models",
    "/health/../v1/models",
    "/health/%2e%2e/v1/models",
    "/health%2f..%2fv1%2fmodels",
    "/health;/../v1/models",
    "/health?/v1/models",
    "/health%00/v1/models",
    "/v1/../health",
    "/v1/../metrics",
    "/./metrics",
    "/metrics/",
    "/metrics%20",
    "/metrics\\",
    "\\metrics",
    "/%6detrics",
    "http://localhost/metrics",
    "http://localhost/health/../metrics",
    "http://health/v1/models",
    "//health/v1/models",
    "/health/v1/models",
    "*",
]


def _is_probe(target: str) -> bool:
    return target.partition("?")[0] == "/health"


@pytest.mark.parametrize("target", RAW_TARGETS)
async def test_odd_raw_paths_open_nothing(listening: Any, target: str) -> None:
    """The target of the request line as it is sent, past every client that would tidy it up."""
    request = f"GET {target} HTTP/1.1\r\nhost: health\r\nconnection: close\r\n\r\n"
    reply = await listening.exchange(request.encode())
    status = int(reply.split(b" ", 2)[1])
    assert status == 200 if _is_probe(target) else status in (400, 401), (target, reply[:200])
    assert b"quire:" not in reply
    assert b'"data"' not in reply


@pytest.mark.parametrize(
    "head",
    [
        "x-original-url: /health",
        "x-rewrite-url: /health",
        "x-forwarded-prefix: /health",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-uri: /health",
        "x-http-method-override: OPTIONS",
        "host: 127.0.0.1",
        "forwarded: for=127.0.0.1;host=localhost",
    ],
)
async def test_headers_that_claim_another_path_or_origin_open_nothing(listening: Any, head: str) -> None:
    request = f"GET /metrics HTTP/1.1\r\nhost: x\r\n{head}\r\nconnection: close\r\n\r\n"
    reply = await listening.exchange(request.encode())
    assert reply.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400"))


POST = b"POST /health HTTP/1.1\r\nhost: x\r\n"
SMUGGLED = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ncontent-length: 40\r\n\r\n" + SMUGGLED,
        b"GET /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"GET /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n" + SMUGGLED,
        b"GET /health\r\n\r\n" + SMUGGLED,
    ],
    ids=["cl.te", "te.cl", "two lengths", "odd coding", "space before colon", "pipelined", "old protocol"],
)
async def test_a_smuggled_request_needs_a_key_of_its_own(listening: Any, request_bytes: bytes) -> None:
    reply = await listening.exchange(request_bytes + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"quire:" not in reply
    assert b"# HELP" not in reply


async def test_models_that_a_key_may_not_use_are_unknown_to_it(serve: Any, tmp_path: Path) -> None:
    path = _key_file(tmp_path, {"name": "a", "models": ["alias"]}, {"name": "b", "models": []}, {"name": "c"})
    async with serve(api_keys=str(path)) as server:

        async def ask(key: str, model: str | None) -> Any:
            body = {"prompt": "a", "max_tokens": 1, "model": model}
            return await server.post("/v1/completions", body, headers={"x-api-key": key})

        listed = {}
        for key in "abc":
            reply = await server.client.get("/v1/models", headers={"x-api-key": key})
            listed[key] = [card["id"] for card in reply.json()["data"]]
        denied, unknown = await ask("a", "fake"), await ask("a", "nowhere")
        default, none = await ask("a", None), await ask("b", None)
        card = await server.client.get("/v1/models/fake", headers={"x-api-key": "a"})
    assert listed == {"a": ["alias"], "b": [], "c": ["fake", "alias"]}
    assert (denied.status_code, card.status_code, none.status_code) == (404, 404, 404)
    assert denied.text.replace("fake", "nowhere") == unknown.text
    assert default.json()["model"] == "alias"


def _key_file(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "keys.json"
    path.write_text(json.dumps([{"key_sha256": show_digest(entry["name"]), **entry} for entry in entries]))
    path.chmod(0o600)
    return path


async def test_every_request_with_a_model_is_checked_for_its_key(serve: Any, tmp_path: Path) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "a"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
        "/v1/responses": {"input": "a"},
        "/v1/responses/input_tokens": {"input": "a"},
        "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
        "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [1]},
    }
    path = _key_file(tmp_path, {"name": "a", "models": ["alias"]})
    async with serve(api_keys=str(path)) as server:
        posts = {path for method, path in routes(server.app) if method == "POST"}
        assert set(bodies) == posts - {"/ping"} - {path for path in posts if "/x" in path}
        for path_of_route, body in bodies.items():
            response = await server.post(path_of_route, body | {"model": "fake"}, headers={"x-api-key": "a"})
            assert response.status_code == 404, (path_of_route, response.text)


def test_keys_are_kept_as_digests_and_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(keys_of_command_line(["secret", "other", "third"]))
    compared: list[tuple[bytes, bytes]] = []
    real = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    for key in ("secret", "third"):
        assert ring.check(f"Bearer {key}") is not None
    with pytest.raises(AuthenticationError):
        ring.check("Bearer no")
    assert len(compared) == 9, "every digest is compared, whichever matches"
    assert all(len(a) == len(b) == 32 for a, b in compared)
    assert "secret" not in repr([vars(account) for _, account in ring._by_digest])


def test_checking_many_keys_is_cheap() -> None:
    """0.2 ms per request with a thousand keys, generously."""
    ring = KeyRing(keys_of_command_line([f"key-{number}" for number in range(1000)]))
    times = []
    for _ in range(30):
        begin = time.process_time()
        ring.check("Bearer key-500")
        times.append(time.process_time() - begin)
    assert statistics.median(times) < 0.002


def test_failed_attempts_are_throttled_by_address() -> None:
    clock = VirtualClock()
    ring = KeyRing(keys_of_command_line(["good"]), clock=clock)
    assert ring.check("Bearer good", address="10.0.0.1") is not None
    for _ in range(auth.FAILURES_PER_MINUTE):
        with pytest.raises(AuthenticationError):
            ring.check("Bearer guess", address="10.0.0.1")
    with pytest.raises(OverloadedError, match="too many wrong API keys") as failure:
        ring.check("Bearer guess", address="10.0.0.1")
    assert failure.value.retry_after_seconds == pytest.approx(2.0)
    assert ring.check("Bearer good", address="10.0.0.1") is not None, "a key that was used there before still works"
    assert ring.check("Bearer good", address="10.0.0.2") is not None, "others are not throttled"
    clock.advance(failure.value.retry_after_seconds)
    with pytest.raises(AuthenticationError):
        ring.check("Bearer guess", address="10.0.0.1")


def test_a_throttled_address_is_not_told_of_a_good_key() -> None:
    ring = KeyRing(keys_of_command_line(["good"]), clock=VirtualClock())
    for _ in range(auth.FAILURES_PER_MINUTE):
        with pytest.raises(AuthenticationError):
            ring.check("Bearer guess", address="10.0.0.1")
    with pytest.raises(OverloadedError):
        ring.check("Bearer good", address="10.0.0.1")


def test_the_table_of_addresses_is_bounded_and_counts_ipv6_by_network() -> None:
    throttle = FailureThrottle(VirtualClock())
    for number in range(auth.MAX_ADDRESSES + 100):
        throttle.note_failure(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle._addresses) == auth.MAX_ADDRESSES
    for number in range(auth.FAILURES_PER_MINUTE):
        throttle.note_failure(f"2001:db8::{number:x}")
    with pytest.raises(OverloadedError):
        throttle.check("2001:db8::ffff", b"")
    throttle.check("2001:db8:1::1", b"")


async def test_failed_attempts_over_http_end_in_429(serve: Any) -> None:
    async with serve(api_key=("good",)) as server:
        statuses = [
            (await server.client.get("/v1/models", headers={"x-api-key": f"guess-{number}"}))
            for number in range(auth.FAILURES_PER_MINUTE + 1)
        ]
    assert {response.status_code for response in statuses[:-1]} == {401}
    assert statuses[-1].status_code == 429
    assert int(statuses[-1].headers["retry-after"]) >= 1


async def test_what_goes_on_for_everybody_is_for_operators(serve: Any, tmp_path: Path) -> None:
    """Counters of the prefix cache would tell one key what another has asked."""
    path = _key_file(tmp_path, {"name": "tenant"}, {"name": "operator", "operator": True})
    async with serve(api_keys=str(path), api_key=("secret",), with_profiles=True) as server:
        statuses = {
            (method, route, key): (await server.client.request(method, route, headers={"x-api-key": key})).status_code
            for method, route in (("GET", "/metrics"), ("GET", "/load"), ("POST", "/start_profile"))
            for key in ("tenant", "operator", "secret")
        }
        refused = await server.client.get("/metrics", headers={"x-api-key": "tenant"})
    assert {key for (_, _, key), status in statuses.items() if status == 403} == {"tenant"}
    assert [status for (_, _, key), status in statuses.items() if key == "tenant"] == [403] * 3
    assert refused.json()["error"]["type"] == "PermissionDeniedError"
