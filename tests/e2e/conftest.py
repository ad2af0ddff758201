"""A real server: `quire serve` as a process of its own, on the small model."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire.kernels import native

START_SECONDS = 240.0
STOP_SECONDS = 60.0
# Without compiled kernels only float32 gives a request the same tokens whoever shares the batch.
DTYPE = "auto" if native.extension() else "float32"
OPTIONS = ("--dtype", DTYPE, "--max-model-len", "1024", "--kv-cache-memory-bytes", "256M", "--max-num-seqs", "64")


@dataclass
class RunningServer:
    """A server process that answers.

    Attributes:
        url: Its address, without `/v1`.
        log: What it wrote to standard error.
    """

    url: str
    model: str
    process: "subprocess.Popen[str]"
    log: Path

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def metrics(self, **headers: str) -> dict[str, float]:
        """The values of `/metrics` by name, buckets left out; those of several labels are added up."""
        text = httpx.get(f"{self.url}/metrics", headers=headers).raise_for_status().text
        values: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#") and "_bucket{" not in line:
                name, value = re.sub(r"\{.*\}", "", line).rsplit(" ", 1)
                values[name] = values.get(name, 0.0) + float(value)
        return values

    def wait_until_idle(self, timeout_seconds: float = 60.0) -> dict[str, float]:
        """Waits until nothing runs or waits and no block is in use; returns the metrics."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            metrics = self.metrics()
            names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            left = {name: metrics[f"quire:{name}"] for name in names if metrics[f"quire:{name}"]}
            if not left:
                return metrics
            assert time.monotonic() < deadline, f"not idle after {timeout_seconds} s: {left}"
            time.sleep(0.05)


@contextlib.contextmanager
def _run_server(log: Path, *options: str) -> Iterator[RunningServer]:
    command = [sys.executable, "-m", "quire.entrypoints.cli.main", "serve", "--port", "0", *OPTIONS, *options]
    environment = {name: value for name, value in os.environ.items() if name != "QUIRE_API_KEY"}
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        try:
            yield _wait_until_ready(process, log)
        finally:
            _stop(process)


def _wait_until_ready(process: "subprocess.Popen[str]", log: Path) -> RunningServer:
    """Reads the greeting, then asks `/health` until it answers."""
    assert process.stdout is not None
    greeting = process.stdout.readline()
    match = re.search(r"quire serves (\S+) at (http\S+)", greeting)
    assert match is not None, f"no greeting but {greeting!r}; the log:\n{log.read_text()[-2000:]}"
    server = RunningServer(match[2], match[1], process, log)
    deadline = time.monotonic() + START_SECONDS
    while httpx.get(f"{server.url}/health").status_code != 200:
        assert time.monotonic() < deadline, "the server does not become healthy"
        time.sleep(0.05)
    return server


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A context manager that starts a server of its own: `with start_server("--api-key", "k") as server`."""

    def start(*options: str) -> contextlib.AbstractContextManager[RunningServer]:
        return _run_server(tmp_path_factory.mktemp("server") / "log", *options)

    return start


@pytest.fixture(scope="session")
def server(start_server: Any) -> Iterator[RunningServer]:
    """The server that tests share. They leave it as they found it: idle."""
    with start_server() as running:
        yield running
