"""A trace of a server that runs."""

import gzip
import json
from pathlib import Path
from typing import Any

import httpx

from quire.kernels.native import extension


def test_a_trace_over_http_names_what_the_engine_ran(start_server: Any, tmp_path: Path) -> None:
    with start_server("--device", "cpu", "--torch-profiler-dir", str(tmp_path / "traces")) as server:
        assert httpx.post(f"{server.url}/stop_profile").status_code == 400
        assert httpx.post(f"{server.url}/start_profile", timeout=60).status_code == 200
        body = {"model": server.model, "prompt": "On", "max_tokens": 4}
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status()
        path = httpx.post(f"{server.url}/stop_profile", timeout=60).raise_for_status().json()["path"]
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status()
    assert Path(path).parent == tmp_path / "traces"
    with gzip.open(path) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    expected = {"quire::forward", "quire::logits"} if extension() else {"aten::scaled_dot_product_attention"}
    assert expected <= names
    assert "Traceback" not in server.log.read_text()
