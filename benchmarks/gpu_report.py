"""What the GPU benchmarks share: raw rows with their birth certificate, tables, and processes of their own."""

import contextlib
import importlib.metadata
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import quire

STOP_SECONDS = 60.0
READY_SECONDS = 600.0


def describe() -> dict[str, Any]:
    """When, on what, with which versions and by which command a row was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": gpu_name(),
        "quire": quire.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton")},
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def gpu_name() -> str | None:
    """Name and driver of the first GPU; None without one. Imports no torch, takes no context."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().split("\n", 1)[0]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def append_rows(path: str | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to a file of JSON lines, each with `describe()`; nothing without a path."""
    if path is None:
        return
    facts = describe()
    with Path(path).open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**facts, **row}) + "\n")


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Prints some columns of the rows; numbers with four significant digits."""
    cells = [[_shown(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(name), *(len(line[place]) for line in cells), 0) for place, name in enumerate(columns)]
    for line in [list(columns), *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)), flush=True)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def engine_options(text: str | None) -> dict[str, Any]:
    """Options of `LLM` from a JSON object on the command line."""
    options: dict[str, Any] = json.loads(text) if text else {}
    return options


class Feeder:
    """Requests with random ids for an engine in this process, one turn of its loop at a time.

    Attributes:
        finished: Outputs of requests that have ended and were not taken yet.
    """

    def __init__(self, llm: quire.LLM, *, vocab: int = 48_000) -> None:
        self.llm = llm
        self.finished: list[quire.RequestOutput] = []
        self._vocab = vocab
        self._random = random.Random(0)

    @property
    def is_idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self.llm._engine.loop.has_unfinished

    def add(self, prompt_tokens: int, answer_tokens: int, **sampling: Any) -> Any:
        """Queues a request whose answer goes on to its full length; returns its id."""
        llm = self.llm
        params = quire.SamplingParams(
            **{"temperature": 0.6, "ignore_eos": True, "max_tokens": answer_tokens, **sampling},
            output_kind=quire.RequestOutputKind.FINAL_ONLY,
        )
        token_ids = [self._random.randrange(100, self._vocab) for _ in range(prompt_tokens)]
        item = llm._input.process({"prompt_token_ids": token_ids}, params, request_id=llm._next_id())
        llm._output.add(item.request, item.prompt, item.params)
        llm._engine.loop.add(item.request)
        return item.request.request_id

    def step(self) -> Any:
        """One turn of the engine, outputs included; returns its counters."""
        self.finished += [output for output in self.llm._step() if output.finished]
        return self.llm.get_stats()

    def abandon(self, request_ids: list[Any]) -> None:
        """Ends requests and waits until the engine is idle."""
        self.llm._abandon(request_ids)
        while not self.is_idle:
            self.step()


@contextlib.contextmanager
def running_server(arguments: Sequence[str], log: Path) -> Iterator[tuple[str, float]]:
    """`quire serve` with these arguments on a free port. Gives its address and the seconds until it was ready."""
    command = [sys.executable, "-m", "quire", "serve", *arguments, "--port", "0"]
    begin = time.perf_counter()
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=dict(os.environ)) as process,
    ):
        try:
            url = _wait_until_ready(process, log)
            yield url, time.perf_counter() - begin
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: "subprocess.Popen[str]", log: Path) -> str:
    import httpx

    assert process.stdout is not None
    match = re.search(r"quire serves \S+ at (http\S+)", process.stdout.readline())
    if match is None:
        raise SystemExit(f"the server did not start; its log ends:\n{log.read_text(encoding='utf-8')[-3000:]}")
    deadline = time.perf_counter() + READY_SECONDS
    while httpx.get(f"{match[1]}/health").status_code != 200:
        if time.perf_counter() > deadline:
            raise SystemExit("the server does not become healthy")
        time.sleep(0.01)
    return match[1]
