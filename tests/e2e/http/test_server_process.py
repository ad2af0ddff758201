"""The server as a process: keys, SIGTERM, and many clients at once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

OPTIONS = ("--api-key", "secret", "--served-model-name", "small", "--shutdown-timeout", "240")
SOAK = Path(__file__).parents[3] / "benchmarks" / "soak.py"


def test_keys_and_sigterm(start_server: Any) -> None:
    """One server for both, as starting one takes seconds."""
    with start_server(*OPTIONS) as server:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0)
        assert [model.id for model in client.models.list()] == ["small"]
        stream = client.completions.create(
            model="small", prompt="On", max_tokens=16, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = [next(stream)]
        server.terminate()
        chunks += stream
        assert chunks[-1].choices[0].finish_reason == "length"
        assert server.process.wait(60) == 0
    assert "Traceback" not in server.log.read_text()


def test_many_clients_with_departures(server: Any) -> None:
    """Every stream equals its non-streamed twin, and nothing is left behind. The long version takes `--minutes 3`."""
    command = [sys.executable, str(SOAK), "--url", server.url, "--minutes", "0.2", "--max-tokens", "12", "--jobs", "64"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in server.log.read_text()
