"""The commands as processes, on the real small model."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quire.checkpoint.checkpoint import SMALL_MODEL_NAME, small_model_path

QUIRE = [sys.executable, "-m", "quire"]


def quire(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*QUIRE, *words], input=text, capture_output=True, text=True, check=False, timeout=240)


def test_generate_prints_the_continuation() -> None:
    words = ["--prompt", "The capital of France is", "--max-tokens", "4", "--temperature", "0", "--dtype", "float32"]
    result = quire("generate", *words)
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
    assert result.stderr == ""


def test_generate_reads_a_file_and_writes_json_lines(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        '{"prompt": "One two three four", "max_tokens": 3}\n'
        '{"prompt_token_ids": [1, 2, 3], "n": 2, "temperature": 1.0, "seed": 5, "ignore_eos": true}\n'
    )
    words = ["--file", str(source), "--json", "--output", str(target), "--max-tokens", "5", "--temperature", "0"]
    result = quire("generate", *words)
    assert result.returncode == 0, result.stderr
    first, second = map(json.loads, target.read_text().splitlines())
    assert first["prompt"] == "One two three four"
    assert [len(answer["token_ids"]) for answer in first["outputs"]] == [3]
    assert second["prompt_token_ids"] == [1, 2, 3]
    assert [len(answer["token_ids"]) for answer in second["outputs"]] == [5, 5]
    assert second["outputs"][0]["finish_reason"] == "length"


def test_generate_refuses_what_the_model_cannot_do() -> None:
    result = quire("generate", "--max-model-len", "16", text="word " * 100)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_info_describes_machine_and_model() -> None:
    result = quire("info", str(small_model_path()), "--json", "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["machine"]["num_usable_cpus"] >= 1
    model = facts["model"]
    assert (model["architecture"], model["format"], model["context_length"]) == ("LlamaForCausalLM", "gguf", 8192)
    assert model["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 4
    assert model["num_parameters"] == 134_515_008


def test_bench_throughput_writes_its_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    words = ["--num-prompts", "3", "--input-len", "9", "--output-len", "4", "--output-json", str(path)]
    result = quire("bench", "throughput", *words)
    assert result.returncode == 0, result.stderr
    content = json.loads(path.read_text())
    assert (content["num_requests"], content["total_num_tokens"]) == (3, 39)
    assert content["tokens_per_second"] > content["output_tokens_per_second"] > 0


def test_bench_latency_measures_each_batch(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    words = ["--num-iters", "2", "--num-iters-warmup", "1", "--input-len", "4", "--output-len", "2"]
    result = quire("bench", "latency", *words, "--batch-size", "2", "--output-json", str(path))
    assert result.returncode == 0, result.stderr
    content = json.loads(path.read_text())
    assert len(content["latencies"]) == 2
    assert content["avg_latency"] == pytest.approx(sum(content["latencies"]) / 2)


def bench(server: str, path: Path, *words: str) -> dict[str, Any]:
    common = ["--base-url", server, "--num-prompts", "6", "--input-len", "20", "--output-len", "5", "--ignore-eos"]
    result = quire("bench", "serve", *common, *words, "--disable-tqdm", "--result-filename", str(path))
    assert result.returncode == 0, result.stderr
    assert "Successful requests:                                       6" in result.stdout
    content: dict[str, Any] = json.loads(path.read_text())
    assert (content["completed"], content["failed"], content["total_output_tokens"]) == (6, 0, 30)
    assert content["model_id"] == SMALL_MODEL_NAME
    return content


@pytest.mark.parametrize("backend", ["quire", "openai-chat"])
def test_bench_serve_in_a_closed_loop(server: str, tmp_path: Path, backend: str) -> None:
    content = bench(server, tmp_path / "r.json", "--backend", backend, "--max-concurrency", "3", "--save-detailed")
    assert content["max_concurrent_requests"] <= 3
    assert content["output_lens"] == [5] * 6
    assert 0 < content["p50_ttft_ms"] <= content["p99_ttft_ms"] <= content["p99_e2el_ms"]


def test_bench_serve_in_an_open_loop(server: str, tmp_path: Path) -> None:
    words = ["--request-rate", "10", "--goodput", "e2el:600000"]
    content = bench(server, tmp_path / "r.json", *words, "--dataset-name", "random", "--seed", "1")
    assert content["request_goodput"] == content["request_throughput"]
    assert content["duration"] >= 0.5


def test_bench_serve_counts_refusals(server: str) -> None:
    words = ["--base-url", server, "--model", "another", "--num-prompts", "2", "--disable-tqdm"]
    result = quire("bench", "serve", *words)
    assert result.returncode == 1
    assert "2 x HTTP 404: " in result.stdout


def test_chat_and_complete(server: str) -> None:
    url = f"{server}/v1"
    answer = quire("chat", "--url", url, "-q", "Say hello.", "--max-tokens", "5", "--temperature", "0")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
    continued = quire("complete", "--url", url, "--max-tokens", "3", text="One two three\nRed green\n")
    assert continued.returncode == 0, continued.stderr
    assert len(continued.stdout.splitlines()) >= 2


def test_a_port_in_use_is_the_callers_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = quire("serve", "--port", str(taken.getsockname()[1]), "--log-level", "warning")
    assert result.returncode == 2
    assert "error: cannot bind 127.0.0.1:" in result.stderr
