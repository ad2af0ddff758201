"""Hostile bodies against the real server: a short form of `benchmarks/hostile_bodies.py`, and what it has found."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "hostile_bodies.py"
PROMPT = "A prompt that is long enough to fill a block of the cache or two, so that it can be found there again."


def test_three_hundred_hostile_bodies_leave_nothing_behind(server: Any) -> None:
    command = [sys.executable, str(SCRIPT), "--url", server.url, "--requests", "300", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "300 hostile bodies" in done.stdout
    server.wait_until_idle()


@pytest.mark.parametrize(
    "contradiction",
    [
        {"allowed_token_ids": [2], "min_tokens": 2, "stop_token_ids": [2]},
        {"allowed_token_ids": [5, 6], "structured_outputs": {"choice": ["yes", "no"]}},
    ],
    ids=["nothing but the end", "a grammar and other tokens"],
)
def test_parameters_that_exclude_every_token_are_the_callers_fault(server: Any, contradiction: dict[str, Any]) -> None:
    url, good = f"{server.url}/v1/completions", {"prompt": PROMPT, "max_tokens": 2}
    httpx.post(url, json=good, timeout=60).raise_for_status()
    refused = httpx.post(url, json={**good, **contradiction, "max_tokens": 4}, timeout=60)
    assert refused.status_code == 400, refused.text
    assert "leave no token" in refused.json()["error"]["message"]
    usage = httpx.post(url, json=good, timeout=60).raise_for_status().json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0, "the caches of others were dropped"


def test_a_penalty_that_overflows_is_refused(server: Any) -> None:
    body = {"prompt": "a", "max_tokens": 2, "repetition_penalty": 5e-324}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "repetition_penalty")
