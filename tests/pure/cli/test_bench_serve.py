"""`quire bench serve` against a small server that answers and fails on command."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quire.entrypoints.cli.bench.options import (
    DatasetOptions,
    LoadOptions,
    ReportOptions,
    RequestSamplingOptions,
    TargetOptions,
)
from quire.entrypoints.cli.bench.serve import BenchmarkOutcome, ServeBenchmark, result_file, run_benchmark
from quire.entrypoints.cli.main import main
from quire.errors import ConfigError

BASE = ServeBenchmark(
    TargetOptions(ready_check_timeout_sec=0.0),
    LoadOptions(num_prompts=6, disable_tqdm=True),
    DatasetOptions(input_len=8, output_len=4),
    RequestSamplingOptions(),
    ReportOptions(),
)
ServeFake = Callable[[Any], Any]
Answer = Callable[[Any, dict[str, Any], asyncio.StreamWriter], Any]


def run(fake: Any, serve_fake: ServeFake, benchmark: ServeBenchmark = BASE) -> BenchmarkOutcome:
    async def measure() -> BenchmarkOutcome:
        async with serve_fake(fake):
            return await run_benchmark(replace(benchmark, target=replace(benchmark.target, base_url=fake.url)))

    return asyncio.run(measure())


def test_a_run_without_failures(fake_server: Any, serve_fake: ServeFake) -> None:
    fake = fake_server()
    outcome = run(fake, serve_fake)
    metrics = outcome.metrics
    assert (metrics.completed, metrics.failed, outcome.model, outcome.notes) == (6, 0, "fake-model", [])
    assert (metrics.total_input_tokens, metrics.total_output_tokens) == (42, 24)
    for record in outcome.result.records:
        assert len(record.choice_times) == 4
        assert 0 <= record.sent_at < record.choice_times[0] <= record.choice_times[-1] <= record.finished_at
        assert record.text == "xxxx"
    body = fake.bodies[0]
    assert (body["model"], body["max_tokens"], body["stream"], body["temperature"]) == ("fake-model", 4, True, 0.0)
    assert len(body["prompt"]) == 8
    assert "ignore_eos" not in body


def test_the_chat_endpoint(fake_server: Any, serve_fake: ServeFake) -> None:
    fake = fake_server()
    target = replace(
        BASE.target, backend="openai-chat", model="named", header=("X-Tenant=a",), extra_body='{"top_k": 3}'
    )
    sampling = RequestSamplingOptions(ignore_eos=True, top_p=0.5)
    outcome = run(fake, serve_fake, replace(BASE, target=target, sampling=sampling))
    assert outcome.metrics.completed == 6
    body = fake.bodies[0]
    assert body["messages"][0]["role"] == "user"
    assert (body["model"], body["ignore_eos"], body["top_p"], body["top_k"]) == ("named", True, 0.5, 3)
    assert fake.heads[-1].startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert "X-Tenant: a\r\n" in fake.heads[-1]


def test_a_closed_loop_keeps_to_its_clients_and_connections(fake_server: Any, serve_fake: ServeFake) -> None:
    fake = fake_server()
    load = replace(BASE.load, num_prompts=20, max_concurrency=3)
    outcome = run(fake, serve_fake, replace(BASE, load=load))
    assert outcome.metrics.completed == 20
    assert fake.peak <= 3
    assert fake.num_connections <= 3


def test_an_open_loop_sends_when_requests_are_due(fake_server: Any, serve_fake: ServeFake) -> None:
    load = replace(BASE.load, num_prompts=11, request_rate=200.0)
    outcome = run(fake_server(), serve_fake, replace(BASE, load=load))
    sent = [record.sent_at for record in outcome.result.records]
    assert sent == sorted(sent)
    assert sent[-1] >= 10 / 200.0
    assert outcome.metrics.completed == 11


def test_warm_ups_are_not_counted(fake_server: Any, serve_fake: ServeFake) -> None:
    fake = fake_server()
    outcome = run(fake, serve_fake, replace(BASE, load=replace(BASE.load, num_prompts=2, num_warmups=3)))
    assert len(fake.bodies) == 5
    assert len({tuple(body["prompt"]) for body in fake.bodies}) == 5
    assert outcome.metrics.completed == 2


def failures_of(outcome: BenchmarkOutcome) -> dict[str, int]:
    return outcome.metrics.failures


def test_every_way_to_fail_is_counted_with_its_reason(fake_server: Any, serve_fake: ServeFake, wire: Any) -> None:
    async def refuse(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(wire.plain("429 Too Many Requests", b'{"error": {"message": "full"}}'))

    async def hang_up(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(wire.stream_head + wire.chunked(wire.event(choices=[{"text": "x"}])))
        await writer.drain()
        writer.close()

    async def end_early(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(wire.stream_head + wire.chunked(wire.event(choices=[{"text": "x"}])) + b"0\r\n\r\n")

    async def fail_midway(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        data = wire.event(choices=[{"text": "x"}]) + wire.event(error={"message": "engine lost"})
        writer.write(wire.stream_head + wire.chunked(data) + b"0\r\n\r\n")

    async def talk_nonsense(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"what?\r\n\r\n")

    answers: dict[int, Answer] = dict(enumerate([refuse, hang_up, end_early, fail_midway, talk_nonsense, refuse]))
    load = replace(BASE.load, num_prompts=8, max_concurrency=1)
    outcome = run(fake_server(answers=answers), serve_fake, replace(BASE, load=load))
    assert (outcome.metrics.completed, outcome.metrics.failed) == (2, 6)
    assert failures_of(outcome) == {
        "HTTP 429: full": 2,
        "the connection was closed before the answer was complete": 1,
        "the stream ended before the answer was finished": 1,
        "the stream ended with an error: engine lost": 1,
        "not an HTTP answer: 'what?'": 1,
    }
    assert next(iter(failures_of(outcome))) == "HTTP 429: full"
    assert outcome.metrics.total_output_tokens == 8


def test_an_answer_that_does_not_come_is_a_failure(fake_server: Any, serve_fake: ServeFake) -> None:
    async def never(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    target = replace(BASE.target, request_timeout=0.05)
    outcome = run(fake_server(answers={0: never}), serve_fake, replace(BASE, target=target))
    assert failures_of(outcome) == {"no answer within 0.05 s": 1}
    assert outcome.metrics.completed == 5


def test_an_idle_connection_that_was_closed_is_not_a_failure(
    fake_server: Any, serve_fake: ServeFake, wire: Any
) -> None:
    async def answer_and_close(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await wire.answer_well(server, body, writer)
        await writer.drain()
        writer.close()

    load = replace(BASE.load, max_concurrency=1)
    answers = dict.fromkeys(range(6), answer_and_close)
    fake = fake_server(answers=answers)
    assert failures_of(run(fake, serve_fake, replace(BASE, load=load))) == {}
    assert len(fake.bodies) == 6


def test_a_server_without_usage_is_counted_by_chunks_and_said_so(fake_server: Any, serve_fake: ServeFake) -> None:
    outcome = run(fake_server(reports_usage=False), serve_fake)
    assert outcome.metrics.total_output_tokens == 24
    assert outcome.metrics.total_input_tokens == 48
    assert outcome.notes == [
        "the server reported no usage for 6 answers; their tokens are taken as one per chunk; --tokenizer counts them"
    ]


def test_no_server(unused_port: int) -> None:
    target = replace(BASE.target, port=unused_port)
    with pytest.raises(ConfigError, match=f"no server answers at http://127.0.0.1:{unused_port}") as caught:
        asyncio.run(run_benchmark(replace(BASE, target=target)))
    assert "quire serve" in str(caught.value.hint)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_the_result_file(fake_server: Any, serve_fake: ServeFake) -> None:
    benchmark = replace(BASE, report=ReportOptions(save_detailed=True, metadata=("gpu=none",), goodput=("e2el:60000",)))
    outcome = run(fake_server(), serve_fake, benchmark)
    content = json.loads(json.dumps(result_file(benchmark, outcome)))
    assert content["completed"] == 6
    assert content["gpu"] == "none"
    assert content["model_id"] == "fake-model"
    assert content["request_goodput"] == content["request_throughput"] > 0
    assert content["output_lens"] == [4] * 6
    assert len(content["ttfts"]) == len(content["itls"]) == len(content["errors"]) == 6
    assert content["client"]["num_cpus"] >= 1
    assert {"duration", "p99_e2el_ms", "mean_tpot_ms", "max_concurrent_requests", "rtfx"} <= content.keys()


def test_the_command_from_end_to_end(
    fake_server: Any, serve_fake: ServeFake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measure() -> int:
        async with serve_fake(fake_server()) as fake:
            words = ["bench", "serve", "--base-url", fake.url, "--num-prompts", "3", "--output-len", "2"]
            words += ["--disable-tqdm", "--result-filename", "r.json", "--result-dir", str(tmp_path)]
            return await asyncio.to_thread(main, words)

    assert asyncio.run(measure()) == 0
    assert "Successful requests:                                       3" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["total_output_tokens"] == 6


def test_a_run_in_which_everything_fails_exits_with_1(
    fake_server: Any, serve_fake: ServeFake, wire: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def refuse(server: Any, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(wire.plain("404 Not Found", b'{"error": {"message": "no such model"}}'))

    async def measure() -> int:
        async with serve_fake(fake_server(answers={0: refuse})) as fake:
            words = ["bench", "serve", "--base-url", fake.url, "--num-prompts", "1", "--disable-tqdm"]
            return await asyncio.to_thread(main, words)

    assert asyncio.run(measure()) == 1
    assert "1 x HTTP 404: no such model" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["--result-dir", "/no/such/folder", "--save-result"], ["--metadata", "x"], ["--percentile-metrics", "x"]],
)
def test_mistakes_are_noticed_before_the_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "target",
    [replace(BASE.target, extra_body="{"), replace(BASE.target, extra_body="[1]"), replace(BASE.target, header=("x",))],
)
def test_refused_request_options(target: TargetOptions, fake_server: Any, serve_fake: ServeFake) -> None:
    with pytest.raises(ConfigError):
        run(fake_server(), serve_fake, replace(BASE, target=target))
