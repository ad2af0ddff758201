"""Traces on demand."""

import gzip
import json

import pytest
import torch

from quire.errors import ConfigError, InvalidRequestError
from quire.worker.profiler import Profiler


def test_a_trace_names_what_ran_between_start_and_stop(tmp_path):
    profiler = Profiler(str(tmp_path / "new" / "traces"))
    profiler.start()
    torch.ones(8, 8) @ torch.ones(8, 8)
    path = profiler.stop()
    assert path.startswith(str(tmp_path / "new" / "traces" / "quire-"))
    with gzip.open(path) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::matmul" in names
    profiler.start()
    assert profiler.stop() != path


def test_it_records_once_at_a_time(tmp_path):
    profiler = Profiler(str(tmp_path))
    with pytest.raises(InvalidRequestError, match="no profile is being recorded"):
        profiler.stop()
    profiler.start()
    with pytest.raises(InvalidRequestError, match="recorded already"):
        profiler.start()
    profiler.stop()


def test_it_needs_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="no folder for traces") as caught:
        Profiler(None).start()
    assert "--torch-profiler-dir" in caught.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write traces"):
        Profiler(str(tmp_path / "file")).start()
