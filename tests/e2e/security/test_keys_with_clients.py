"""Keys, quotas and deadlines as the official clients see them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from quire.entrypoints.http.keys import show_digest

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def locked(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [{"name": "few", "requests_per_minute": 2}, {"name": "other"}]
    path.write_text(json.dumps([{**entry, "key_sha256": show_digest(str(entry["name"]))} for entry in entries]))
    path.chmod(0o600)
    with start_server("--api-keys", str(path)) as running:
        yield running


def client(server: Any, key: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **{"max_retries": 0, **options})


def test_openai_s_client(locked: Any) -> None:
    with client(locked, "other") as good, client(locked, "wrong") as bad, client(locked, "few") as few:
        chat = good.chat.completions.create(model=locked.model, messages=HELLO, max_tokens=4)
        assert chat.choices[0].message.content
        with pytest.raises(openai.AuthenticationError, match="invalid API key"):
            bad.models.list()
        raw = few.completions.with_raw_response.create(model=locked.model, prompt="a", max_tokens=1)
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        few.completions.create(model=locked.model, prompt="a", max_tokens=1)
        with pytest.raises(openai.RateLimitError, match="2 requests per minute") as failure:
            few.completions.create(model=locked.model, prompt="a", max_tokens=1)
        assert int(failure.value.response.headers["retry-after"]) >= 1
        assert [card.id for card in few.models.list()] == [locked.model]


def test_anthropic_s_client_sends_its_key_in_another_header(locked: Any) -> None:
    with anthropic.Anthropic(base_url=locked.url, api_key="other", max_retries=0) as good:
        message = good.messages.create(model=locked.model, messages=HELLO, max_tokens=4)
        assert message.content
    with (
        anthropic.Anthropic(base_url=locked.url, api_key="wrong", max_retries=0) as bad,
        pytest.raises(anthropic.AuthenticationError),
    ):
        bad.messages.create(model=locked.model, messages=HELLO, max_tokens=4)


def test_a_deadline_is_not_tried_again(locked: Any) -> None:
    with client(locked, "other", max_retries=3) as patient:
        body = {"timeout": 0.3, "ignore_eos": True, "max_tokens": 900}
        with pytest.raises(openai.APIStatusError) as failure:
            patient.completions.create(model=locked.model, prompt="a", extra_body=body)
        assert failure.value.status_code == 408
        assert failure.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.APIError, match="time is over"):
            list(
                patient.completions.create(model=locked.model, prompt="a", max_tokens=900, stream=True, extra_body=body)
            )


def test_probes_need_no_key_and_the_rest_does(locked: Any) -> None:
    assert httpx.get(f"{locked.url}/health").status_code == 200
    assert httpx.get(f"{locked.url}/ready").status_code == 200
    assert httpx.get(f"{locked.url}/metrics").status_code == 401
    assert httpx.get(f"{locked.url}/metrics", headers={"x-api-key": "other"}).status_code == 403
