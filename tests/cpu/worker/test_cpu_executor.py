import gzip
import json
import logging
import threading

import pytest
import torch

from quire.checkpoint.checkpoint import open_checkpoint
from quire.config.engine import EngineConfig
from quire.errors import ConfigError, InsufficientMemoryError, StepFailedError
from quire.kernels import native
from quire.kernels.linear.native import unpack
from quire.kernels.native import NativeCpu
from quire.worker.cpu_executor import CpuExecutor
from quire.worker.step_model import TorchStepModel

ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
PROMPT = [5, 17, 3, 30, 8, 8, 41, 2, 19, 26, 7]


@pytest.fixture(params=["compiled", "torch"])
def start(request, tmp_path, monkeypatch):
    """A function that starts an executor on a tiny random Llama; all are shut down afterwards.

    Once with the compiled kernels, once as if quire had been installed without a compiler.
    """
    if request.param == "torch":
        monkeypatch.setattr(native, "extension", lambda: None)
    elif native.extension() is None:
        pytest.skip("quire was installed without compiled kernels")
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
    (tmp_path / "tokenizer.json").write_text("{}")
    executors = []

    def make(**options):
        config = EngineConfig.from_options(
            **{
                "model": str(tmp_path),
                "load_format": "dummy",
                "dtype": "float32",
                "max_model_len": 64,
                "max_num_seqs": 8,
                "max_num_batched_tokens": 32,
                "block_size": 4,
                "use_tqdm_on_load": False,
                "threads": 1,
                **options,
            }
        )
        executors.append(CpuExecutor(config, open_checkpoint(config.model)))
        return executors[-1]

    yield make
    for executor in executors:
        executor.shutdown()


def decode(executor, maker, num_tokens, prompt=PROMPT, chunk=None, **options):
    """Tokens of one sequence; every plan is submitted before the first is waited for."""
    chunk = chunk or len(prompt)
    maker.enter(0, prompt, compute=chunk, **options)
    plans = [maker.seal()]
    for start in range(chunk, len(prompt), chunk):
        maker.go(0, min(chunk, len(prompt) - start))
        plans.append(maker.seal())
    for _ in range(num_tokens - 1):
        maker.go(0)
        plans.append(maker.seal())
    maker.release(0)
    for plan in plans:
        executor.submit(plan)
    return [token_id for _ in plans for token_id in executor.wait().token_ids]


def test_tells_what_it_settled_on(start, caplog):
    with caplog.at_level(logging.INFO, logger="quire.worker"):
        executor = start()
    assert (executor.dtype, executor.block_size, executor.max_model_len, executor.vocab_size) == ("float32", 4, 64, 96)
    assert executor.num_blocks == 8 * 16
    assert executor.memory.kv_cache_bytes == 128 * 4 * 2 * 3 * 2 * 8 * 4
    assert 4 * 96 * 32 < executor.memory.weight_bytes < 2**20
    assert executor.memory.as_dict()["weights"] == executor.memory.weight_bytes
    assert set(executor.start_seconds) == {"build_model", "load_weights", "kv_cache", "warm_up"}
    assert executor.memory.table() in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_chunked_prefill_equals_whole(start, maker, dtype):
    executor = start(dtype=dtype)
    whole = decode(executor, maker, 8)
    assert len(whole) == 8
    assert executor.dtype == dtype
    if dtype == "float32":
        assert decode(executor, maker, 8, chunk=3) == whole
        assert decode(executor, maker, 8, chunk=5) == whole


def test_the_kv_cache_may_have_another_format(start, maker):
    executor = start(kv_cache_dtype="bfloat16")
    assert executor.memory.block_bytes == 4 * 2 * 3 * 2 * 8 * 2
    assert len(decode(executor, maker, 8)) == 8


def test_a_step_that_fails_does_not_end_the_executor(start, maker, caplog):
    executor = start()
    expected = decode(executor, maker, 4)
    maker.enter(0, PROMPT)
    broken = maker.seal()
    broken.num_tokens[0] += 5
    maker.enter(1, PROMPT)
    healthy = maker.seal()
    executor.submit(broken)
    executor.submit(healthy)
    with caplog.at_level(logging.CRITICAL, logger="quire.worker"), pytest.raises(StepFailedError, match="1 sequences"):
        executor.wait()
    assert executor.wait().token_ids == expected[:1]


def test_a_model_that_does_not_fit_is_refused_with_what_would(start):
    with pytest.raises(InsufficientMemoryError, match="--max-model-len 60 fits"):
        start(num_gpu_blocks_override=15)
    assert start(num_gpu_blocks_override=15, max_model_len=60).num_blocks == 15


def test_shutdown_ends_the_thread(start, maker):
    executor = start()
    assert any(thread.name.startswith("quire-worker") for thread in threading.enumerate())
    executor.submit(maker.seal())
    executor.shutdown()
    assert not any(thread.name.startswith("quire-worker") for thread in threading.enumerate())


def test_a_trace_holds_the_steps_between_start_and_stop(start, maker, tmp_path):
    executor = start(torch_profiler_dir=str(tmp_path / "traces"))
    executor.start_profile()
    decode(executor, maker, 3)
    path = executor.stop_profile()
    with gzip.open(path) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert any(str(name).startswith("aten::") for name in names)
    with pytest.raises(ConfigError, match="no folder for traces"):
        start().start_profile()


def test_threads_are_those_asked_for(start):
    executor = start(threads=2)
    assert executor._thread.submit(torch.get_num_threads).result() == 2


def execute(executor, maker):
    """Runs the plan made so far; tokens by sequence id, and the failures."""
    plan = maker.seal()
    executor.submit(plan)
    result = executor.wait()
    drawing = [sequence_id for sequence_id, samples in zip(plan.sequence_ids, plan.samples, strict=True) if samples]
    return dict(zip(drawing, result.token_ids, strict=True)), result.failures


@pytest.mark.parametrize("mix", [{}, {"temperature": 1.0, "top_p": 0.8, "seed": 3}], ids=str)
def test_batched_forked_and_resumed_sequences_equal_lone_ones(start, maker, mix):
    executor = start()
    other = [60, 61, 62, 63, 64, 65]
    expected, expected_other = decode(executor, maker, 6, **mix), decode(executor, maker, 6, prompt=other)
    drawn = {}

    def step():
        for sequence_id, token_id in execute(executor, maker)[0].items():
            drawn.setdefault(sequence_id, []).append(token_id)

    first = maker.enter(0, PROMPT, compute=7, **mix)
    beside = maker.enter(1, other)
    step()
    maker.go(1)
    maker.go(0, 4)
    step()
    forked = maker.enter(3, PROMPT, table=maker.fork(0, len(PROMPT) - 1), computed=len(PROMPT) - 1, **mix)
    for _ in range(2):
        maker.go(0)
        maker.go(1)
        step()
        maker.go(3)
    step()
    maker.release(0)
    resumed = maker.enter(5, PROMPT + drawn[first], num_prompt_tokens=len(PROMPT), compute=9, **mix)
    maker.go(1)
    step()
    maker.go(5, len(PROMPT) + len(drawn[first]) - 9)
    maker.go(1)
    step()
    assert drawn[first] + drawn[resumed] == expected[:4]
    assert drawn[forked] == expected[: len(drawn[forked])]
    assert len(drawn[forked]) == 3
    assert drawn[beside] == expected_other


def poisoning(executor, token_id):
    """Functions that make the embedding of a token NaN, and what it was."""
    model = executor._runner._model
    if isinstance(model, TorchStepModel):
        row = model._model.embedding.weight[token_id]
        kept = row.clone()
        return lambda: row.fill_(torch.nan), lambda: row.copy_(kept)
    embedding, first = model._forward._kept[0], token_id // 16 * 16
    group = unpack(embedding)[first : first + 16].contiguous()
    poisoned = group.clone()
    poisoned[token_id - first] = torch.nan
    pool = NativeCpu.create(1).pool
    return (
        lambda: embedding.data.write_floats(pool, 0, first, poisoned.numpy()),
        lambda: embedding.data.write_floats(pool, 0, first, group.numpy()),
    )


def test_what_a_poisoned_sequence_leaves_in_its_blocks_is_never_read(start, maker):
    executor = start()
    expected = decode(executor, maker, 5)
    poison, heal = poisoning(executor, 40)
    poison()
    healthy = maker.enter(1, PROMPT)
    poisoned = maker.enter(0, [40] * 21, compute=20)
    tokens, failures = execute(executor, maker)
    assert (tokens, failures) == ({healthy: expected[0]}, {})
    maker.go(0)
    maker.go(1)
    tokens, failures = execute(executor, maker)
    assert tokens[healthy] == expected[1]
    assert list(failures) == [poisoned]
    maker.release(0)
    # The blocks freed last are taken first.
    heal()
    assert decode(executor, maker, 5) == expected
