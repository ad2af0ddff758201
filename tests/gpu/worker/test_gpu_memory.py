"""`gpu_memory_utilization` is kept within 2 % of the card, beside other processes too; what does not fit is refused
with what would. Engines run in processes of their own, and the card is read from here.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("real_gpu")

GIB = 2**30
TOLERANCE = 0.02
STOP_SECONDS = 60.0
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 49152,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}

ENGINE = """
import json, sys
from quire import LLM, SamplingParams
from quire.errors import InsufficientMemoryError

def main():
    try:
        llm = LLM(**json.loads(sys.argv[1]))
    except InsufficientMemoryError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    info = llm._engine.info
    print(json.dumps({"num_tokens": info.num_blocks * info.block_size, **info.memory}), flush=True)
    if sys.argv[2:]:
        load(llm, SamplingParams)
        print("loaded", flush=True)
        sys.stdin.readline()
    llm.shutdown()

def load(llm, make_params):
    prompts = [[3 + (index + place) % 40000 for place in range(900)] for index in range(300)]
    params = [
        make_params(temperature=1.0, top_p=0.9, max_tokens=20 + index % 7, ignore_eos=True, detokenize=False,
                    logprobs=5 if index % 3 == 0 else None, repetition_penalty=1.1 if index % 5 == 0 else 1.0)
        for index in range(300)
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert sum(len(output.outputs[0].token_ids) for output in outputs) > 6000

main()
"""

HOLDER = """
import sys, torch
held = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("holding", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 0.6 billion parameters, without weights."""
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def options(folder: Path, model_path: Path) -> dict[str, Any]:
    return {
        "model": str(folder),
        "tokenizer": str(model_path),
        "load_format": "dummy",
        "device": "cuda",
        "max_model_len": 4096,
        "use_tqdm_on_load": False,
    }


@contextmanager
def child(code: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs until the context ends."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the process ended early; its errors stand above"
    return line.strip()


def used_bytes() -> int:
    """What all processes hold of the card."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def total_bytes() -> int:
    return torch.cuda.mem_get_info()[1]


def share_of(options: dict[str, Any]) -> float:
    """What an engine takes of the card after a heavy load, as a fraction."""
    before = used_bytes()
    with child(ENGINE, json.dumps(options), "with a load") as process:
        ledger = json.loads(read_line(process))
        assert "error" not in ledger, ledger["error"]
        at_start = (used_bytes() - before) / total_bytes()
        assert read_line(process) == "loaded"
        share = (used_bytes() - before) / total_bytes()
    print(f"asked for {options['gpu_memory_utilization']:.3f}: {at_start:.4f} at the start, {share:.4f} after a load")
    assert ledger["available"] == total_bytes()
    return float(share)


def start_all(*options: dict[str, Any]) -> list[dict[str, Any]]:
    """What engines say at their start: the ledger, or the error. One after the other: each measures the card."""
    said = []
    for option in options:
        with child(ENGINE, json.dumps(option)) as process:
            said.append(json.loads(read_line(process)))
    return said


@pytest.mark.parametrize("utilization", [0.9, 0.35])
def test_utilization_is_kept(utilization: float, options: dict[str, Any]) -> None:
    # The engines of other tests hold a little of the card.
    utilization = min(utilization, 0.98 - used_bytes() / total_bytes())
    share = share_of(options | {"gpu_memory_utilization": utilization})
    assert share == pytest.approx(utilization, abs=TOLERANCE)


def test_utilization_is_kept_beside_another_process(options: dict[str, Any]) -> None:
    with child(HOLDER, str(20 * GIB)) as holder:
        assert read_line(holder) == "holding"
        (refused,) = start_all(options | {"gpu_memory_utilization": 0.95})
        match = re.search(r"--gpu-memory-utilization ([\d.]+) fits", refused["error"])
        assert match is not None, refused["error"]
        assert 0.5 < float(match[1]) < 0.9
        for utilization in (0.5, float(match[1])):
            share = share_of(options | {"gpu_memory_utilization": utilization})
            assert share == pytest.approx(utilization, abs=TOLERANCE)


def test_what_does_not_fit_is_refused_with_flags_that_do(options: dict[str, Any]) -> None:
    """40,960 tokens take 4.4 GiB of KV cache; the hint names a length and a fraction, and both work."""
    tight = options | {"max_model_len": 40_960, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.035}
    too_small, refused = start_all(options | {"gpu_memory_utilization": 0.005}, tight)
    assert re.search(r"[\d.]+ GiB.*\nhint: ", too_small["error"]), too_small["error"]
    length = re.search(r"--max-model-len (\d+) fits", refused["error"])
    fraction = re.search(r"--gpu-memory-utilization ([\d.]+) makes room", refused["error"])
    assert length is not None and fraction is not None, refused["error"]
    shorter = tight | {"max_model_len": int(length[1])}
    larger = tight | {"gpu_memory_utilization": float(fraction[1])}
    ledgers = start_all(shorter, larger)
    for wanted, ledger in zip((shorter, larger), ledgers, strict=True):
        assert "error" not in ledger, ledger["error"]
        assert ledger["num_tokens"] >= wanted["max_model_len"]
