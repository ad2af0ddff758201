"""The examples do what they say."""

import ast
import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"


def run(name: str, *words: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_offline() -> None:
    lines = run("offline.py").splitlines()
    assert "The capital of France is" in lines[0]
    assert len(lines) >= 4


def test_batch_jsonl(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"question": "Name a colour.", "max_tokens": 4}\n{"question": "Say hello."}\n')
    run("batch_jsonl.py", str(source), str(target))
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["question"] for answer in answers] == ["Name a colour.", "Say hello."]
    assert all(answer["answer"] for answer in answers)


def test_chat_client(server: str) -> None:
    lines = run("chat_client.py", f"{server}/v1").splitlines()
    assert any(line.endswith("tokens]") for line in lines)
    assert lines[-1].strip()


def test_stream(server: str) -> None:
    lines = run("stream.py", f"{server}/v1").splitlines()
    usage = ast.literal_eval(lines[-1])
    assert 0 < usage["completion_tokens"] <= 32
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert len(" ".join(lines[:-1])) > usage["completion_tokens"]


def test_anthropic_client(server: str) -> None:
    lines = run("anthropic_client.py", server).splitlines()
    assert lines[0].endswith("tokens go in")
    assert any(line.startswith("get_weather({'city': ") for line in lines)
    assert lines[-1].endswith("tokens]")
