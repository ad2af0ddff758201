"""`quire serve --device cuda` and the official client."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire import LLM, SamplingParams

openai: Any = pytest.importorskip("openai")

START_SECONDS = 120.0
STOP_SECONDS = 60.0
QUESTION: Any = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def url(device: str, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running server's address, without `/v1`."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "quire", "serve", str(model_path), "--device", device, "--port", "0"]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory-bytes", "256M"]
    environment = {name: value for name, value in os.environ.items() if name != "QUIRE_API_KEY"}
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        try:
            yield wait_until_ready(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert process.returncode == 0, log.read_text()[-2000:]


def wait_until_ready(process: "subprocess.Popen[str]", log: Path) -> str:
    assert process.stdout is not None
    match = re.search(r"quire serves (\S+) at (http\S+)", process.stdout.readline())
    assert match is not None, f"no greeting; the log:\n{log.read_text()[-2000:]}"
    deadline = time.monotonic() + START_SECONDS
    while httpx.get(f"{match[2]}/health").status_code != 200:
        assert time.monotonic() < deadline, "the server does not become healthy"
        time.sleep(0.05)
    return match[2]


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: Any) -> str:
    (served,) = client.models.list().data
    return str(served.id)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 4}], ids=str)
def test_stream_equals_the_whole_answer_and_the_offline_one(
    sampling: dict[str, Any], client: Any, model: str, engine: LLM
) -> None:
    arguments: Any = {"model": model, "messages": QUESTION, "max_tokens": 24, **sampling}
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    streamed = "".join(delta.content or "" for delta in deltas)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 1
    offline = engine.chat([QUESTION], SamplingParams(max_tokens=24, **sampling), use_tqdm=False)
    assert offline[0].outputs[0].text == streamed


def test_completions_with_logprobs(client: Any, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2, echo=True
    )
    (choice,) = answer.choices
    assert choice.text.startswith("The capital of France is Paris")
    assert "".join(choice.logprobs.tokens) == choice.text


def test_many_streams_at_once(url: str, model: str) -> None:
    """Each as if it were alone."""
    questions = [f"Write {number} words about the sea." for number in range(48)]

    async def ask(client: Any, question: str, stream: bool) -> str:
        arguments: Any = {"model": model, "prompt": question, "max_tokens": 32, "temperature": 0.7, "seed": 3}
        arguments["extra_body"] = {"ignore_eos": True, "top_k": 40}
        if not stream:
            return str((await client.completions.create(**arguments)).choices[0].text)
        pieces = [chunk async for chunk in await client.completions.create(**arguments, stream=True)]
        return "".join(piece.choices[0].text for piece in pieces)

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            together = await asyncio.gather(*[ask(client, question, stream=True) for question in questions])
            alone = [await ask(client, question, stream=False) for question in questions[:6]]
            assert alone == together[:6]

    asyncio.run(run())


def test_a_mistake_is_refused_with_its_place(client: Any, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model=model, prompt="x", max_tokens=0)


def test_metrics_tell_of_the_device(url: str) -> None:
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    assert "quire:num_requests_running 0.0" in re.sub(r"\{[^}]*\}", "", text)
