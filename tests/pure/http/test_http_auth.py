"""What a key brings with it: a salt, quotas, a priority. Who is let in at all: `security/test_authorisation.py`."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire.entrypoints.http.keys import show_digest
from quire.errors import ConfigError

pytestmark = pytest.mark.anyio


def key_file(folder: Path, **entries: dict[str, Any]) -> str:
    """A file of keys; each is its holder's name."""
    path = folder / "keys.json"
    fields = [{"name": name, "key_sha256": show_digest(name), **entry} for name, entry in entries.items()]
    path.write_text(json.dumps(fields))
    path.chmod(0o600)
    return str(path)


def by(name: str) -> dict[str, Any]:
    return {"headers": {"authorization": f"Bearer {name}"}}


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
    assert not any(name.startswith("x-ratelimit") for name in response.headers)


async def test_requests_carry_their_tenant_weight_and_priority(serve: Any, tmp_path: Path) -> None:
    path = key_file(tmp_path, alice={"weight": 2.0}, bob={})
    async with serve(api_key=("secret",), api_keys=path) as server:
        for name in ("alice", "bob", "secret"):
            await server.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "priority": 1}, **by(name))
        sent = [(request.tenant, request.weight, request.priority) for request in server.port.requests]
    assert sent == [("alice", 2.0, 1), ("bob", 1.0, 1), ("key-1", 1.0, 1)]


async def test_a_priority_needs_the_policy(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path, alice={"priority": 3})
    async with serve(api_keys=path) as server:
        body = {"prompt": "a", "max_tokens": 1}
        for priority in (None, 2):
            await server.post("/v1/completions", body | {"priority": priority}, **by("alice"))
        refused = await server.post("/v1/completions", body | {"priority": -1}, **by("alice"))
        assert [request.priority for request in server.port.requests] == [3, 5]
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")
        from quire.config.server import ServerConfig
        from quire.entrypoints.http.auth import make_key_ring

        with pytest.raises(ConfigError, match="has priority 3, and the scheduler knows none"):
            make_key_ring(ServerConfig(api_keys=path), "fcfs")


async def test_requests_per_minute(serve: Any, tmp_path: Path) -> None:
    path = key_file(tmp_path, alice={"requests_per_minute": 2}, bob={})
    async with serve(api_keys=path) as server:
        body = {"prompt": "a", "max_tokens": 1}
        replies = [await server.post("/v1/completions", body, **by("alice")) for _ in range(3)]
        other = await server.post("/v1/completions", body, **by("bob"))
        listed = await server.client.get("/v1/models", **by("alice"))
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["1", "0", "0"]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "2"
    assert replies[0].headers["x-ratelimit-reset-requests"].endswith("s")
    assert replies[2].json()["error"]["type"] == "RateLimitError"
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    assert (other.status_code, listed.status_code) == (200, 200)
    assert "x-ratelimit-limit-requests" not in other.headers


async def test_tokens_per_minute_are_charged_by_what_was_used(serve: Any, tmp_path: Path) -> None:
    path = key_file(tmp_path, alice={"tokens_per_minute": 120})
    async with serve(api_keys=path) as server:
        first = await server.post("/v1/completions", {"prompt": "abcd", "max_tokens": 100, "stop": "~"}, **by("alice"))
        used = first.json()["usage"]["total_tokens"]
        body = {"prompt": "abcd", "max_tokens": 4}
        second = await server.post("/v1/completions", body | {"n": 2}, **by("alice"))
        third = await server.post("/v1/completions", body | {"n": 50}, **by("alice"))
    remaining = int(second.headers["x-ratelimit-remaining-tokens"])
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert remaining in (120 - used - 12, 120 - used - 11)
    assert "120 tokens per minute" in third.json()["error"]["message"]


async def test_concurrency_is_given_back_however_a_request_ends(serve: Any, tmp_path: Path) -> None:
    path = key_file(tmp_path, alice={"max_concurrency": 1})
    async with serve(api_keys=path) as server:
        server.port.may_step.clear()
        body = {"prompt": "a", "max_tokens": 1}
        first = server.exchange("/v1/completions", body, headers=by("alice")["headers"])
        await server.until(lambda: bool(server.port.requests))
        refused = await server.post("/v1/completions", body, **by("alice"))
        first.leave()
        await first.task
        server.port.may_step.set()
        bad = await server.post("/v1/completions", body | {"prompt": "x" * 5000}, **by("alice"))
        stream = await server.post("/v1/completions", body | {"stream": True}, **by("alice"))
        last = await server.post("/v1/completions", body, **by("alice"))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert (bad.status_code, stream.status_code, last.status_code) == (400, 200, 200)


async def test_a_prompt_of_many_that_is_over_the_quota_refuses_all_before_any_stream(
    serve: Any, tmp_path: Path
) -> None:
    path = key_file(tmp_path, alice={"max_concurrency": 2})
    async with serve(api_keys=path) as server:
        body = {"prompt": ["a", "b", "c"], "max_tokens": 1, "stream": True}
        refused = await server.post("/v1/completions", body, **by("alice"))
        passed = await server.post("/v1/completions", body | {"prompt": ["a", "b"]}, **by("alice"))
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/json"
    assert passed.status_code == 200


async def test_a_flood_of_one_key_does_not_get_another_refused(serve: Any) -> None:
    async with serve(api_key=("loud", "quiet"), max_num_queued_reqs=20) as server:
        await server.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, **by("quiet"))
        server.port.may_step.clear()
        body = {"prompt": "a", "max_tokens": 1}
        flood = [server.exchange("/v1/completions", body, headers=by("loud")["headers"]) for _ in range(40)]
        await server.until(lambda: sum(one.status is not None for one in flood) >= 30)
        quiet = [server.exchange("/v1/completions", body, headers=by("quiet")["headers"]) for _ in range(3)]
        await server.until(lambda: len(server.port.requests) >= 14)
        server.port.may_step.set()
        for exchange in flood + quiet:
            await exchange.task
    assert [one.status for one in flood].count(200) == 10
    assert {one.status for one in flood} == {200, 429}
    assert [one.status for one in quiet] == [200, 200, 200]


async def test_a_request_that_fails_before_the_engine_has_it_reserves_nothing(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = key_file(tmp_path, alice={"max_concurrency": 1, "tokens_per_minute": 1000})
    body = {"prompt": "a", "max_tokens": 1}
    for broken in ("frontend.processor.OutputProcessor.add", "frontend.async_engine.AsyncEngine._open_stream"):
        async with serve(api_keys=path) as server:
            with monkeypatch.context() as patch:
                patch.setattr(f"quire.{broken}", lambda *_, **__: 1 / 0)
                failed = await server.post("/v1/completions", body, **by("alice"))
            after = await server.post("/v1/completions", body, **by("alice"))
            assert (failed.status_code, after.status_code) == (500, 200)
            assert server.engine.num_requests == 0
