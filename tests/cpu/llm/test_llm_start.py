"""What a start reports, and traces of an engine in this process."""

import gzip
import json
import logging
import time
from pathlib import Path

import pytest

from quire import LLM, SamplingParams
from quire.checkpoint.checkpoint import small_model_path
from quire.errors import CheckpointNotFoundError, ConfigError, InvalidRequestError


@pytest.fixture
def model() -> str:
    try:
        return str(small_model_path())
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))


def test_the_phases_are_the_constructors_time(model: str, caplog: pytest.LogCaptureFixture) -> None:
    begin = time.perf_counter()
    with caplog.at_level(logging.INFO, logger="quire.start"):
        llm = LLM(model, device="cpu", dtype="float32", max_model_len=256, use_tqdm_on_load=False)
    seconds = time.perf_counter() - begin
    llm.shutdown()
    assert 0.95 * seconds < sum(llm.start_seconds.values()) <= seconds
    assert {"open_checkpoint", "import_torch", "load_weights", "warm_up", "tokenizer"} <= llm.start_seconds.keys()
    assert "started in" in caplog.text


def test_a_trace_on_demand(model: str, tmp_path: Path) -> None:
    llm = LLM(
        model, device="cpu", max_model_len=256, use_tqdm_on_load=False, torch_profiler_dir=str(tmp_path / "traces")
    )
    with pytest.raises(InvalidRequestError, match="no profile is being recorded"):
        llm.stop_profile()
    llm.start_profile()
    llm.generate("One two", SamplingParams(max_tokens=2), use_tqdm=False)
    path = llm.stop_profile()
    llm.shutdown()
    with gzip.open(path) as file:
        assert json.load(file)["traceEvents"]
    assert Path(path).parent == tmp_path / "traces"


def test_a_trace_needs_a_folder(model: str) -> None:
    llm = LLM(model, device="cpu", max_model_len=256, use_tqdm_on_load=False)
    with pytest.raises(ConfigError, match="--torch-profiler-dir"):
        llm.start_profile()
    llm.shutdown()
