"""What the HTTP process costs per streamed token: a real server and real clients around an engine that is a fake.

    python benchmarks/http_cost.py [--streams 64] [--seconds 5] [--json]

Three processes. The engine's speaks the protocol of quire's engine over a Unix socket, and in every step sends one
token to each stream, whatever the prompts are. The server's is what `quire serve` runs: uvicorn, the application,
tokenizer and all. This one has the clients, which send chat requests over TCP and note when bytes arrive.

Three runs:

    paced    the engine takes as many steps per second as make `--tokens-per-second` (10,000) of all streams
    fast     it takes its steps as fast as the server reads; tokens that pile up are sent to a client together
    alone    one stream, at the pace of the first run

Figures of a run:

    cpu_seconds_per_10k_tokens   CPU time of the server process, from the system's books. In the paced run it is the
                                 share of a core that 10,000 tokens per second take. Others who use the machine
                                 spoil caches, and no more
    tokens_per_event             1 where the server keeps up
    whole_way                    from right before the engine's send to the client's receive. Each token names its step
                                 by its text. The tokens of a step come all at once: the last of 64 waits for 63
    per_token                    the same for the last token of a step, divided by the tokens of the step: what the
                                 front end adds for one

The clock is the system's monotonic one, the same in all processes. Engine and clients take their share of the
machine, so times are upper bounds, and loose ones where fewer than three cores are free.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import mmap
import os
import platform
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

from quire.checkpoint.checkpoint import open_checkpoint
from quire.config.model import ModelConfig
from quire.config.server import ServerConfig
from quire.engine import wire
from quire.engine.client import EngineClient
from quire.engine.port import EngineInfo
from quire.entrypoints.http.app import create_app
from quire.entrypoints.http.server import bind, serve_app
from quire.frontend.async_engine import AsyncEngine
from quire.frontend.input_processor import create_input_processor
from quire.frontend.tokenizer import Tokenizer, load_tokenizer
from quire.types.deltas import FinishReason, SequenceDelta, StepOutputs
from quire.types.ids import RequestId

NUM_WORDS = 1024
"""Tokens whose text tells their step; a stream must not fall behind by more steps than that."""
MAX_STEPS = 1 << 16
STAMP = struct.Struct("d")
TARGET_CPU_SECONDS = 1.0
TARGET_PER_TOKEN_MILLISECONDS = 0.3


def step_words(tokenizer: Tokenizer) -> dict[str, int]:
    """Tokens that are one lower-case word with a space before it, by their text."""
    words: dict[str, int] = {}
    for token_id in range(tokenizer.vocab_size):
        text = tokenizer.token_text(token_id)
        if re.fullmatch(r" [a-z]{3,}", text):
            words.setdefault(text, token_id)
            if len(words) == NUM_WORDS:
                return words
    raise ValueError("the vocabulary has too few words")


class Stamps:
    """When each step was sent, in memory that two processes share."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), MAX_STEPS * STAMP.size)

    def __setitem__(self, step: int, seconds: float) -> None:
        STAMP.pack_into(self._memory, step * STAMP.size, seconds)

    def __getitem__(self, step: int) -> float:
        seconds: float = STAMP.unpack_from(self._memory, step * STAMP.size)[0]
        return seconds


@dataclass
class FakeEngine:
    """Sends every request of a run the same words, one per step, once all requests of the run are there."""

    connection: socket.socket
    stamps: Stamps
    word_ids: list[int]
    vocab_size: int
    num_streams: int
    steps_per_second: float
    remaining: dict[RequestId, int] = field(default_factory=dict)
    arrived: "threading.Semaphore" = field(default_factory=lambda: threading.Semaphore(0))
    begun: set[RequestId] = field(default_factory=set)
    step: int = 0

    def run(self) -> None:
        """Serves until the front end closes the connection."""
        info = EngineInfo(
            max_model_len=1 << 17,
            max_num_seqs=self.num_streams,
            max_num_batched_tokens=1 << 14,
            scheduling_policy="fcfs",
            num_blocks=1 << 16,
            block_size=16,
            vocab_size=self.vocab_size,
            dtype="none",
            device="none",
            memory={},
            start_seconds={},
        )
        self.connection.sendall(wire.encode(wire.Ready(info=info)))
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            for _ in range(self.num_streams):
                self.arrived.acquire()
            self._run_streams()

    def _read(self) -> None:
        while (body := wire.read_frame(self.connection)) is not None:
            message = wire.decode_to_engine(body)
            if isinstance(message, wire.Add):
                max_tokens = message.request.sampling.max_tokens
                assert max_tokens is not None
                self.remaining[message.request.request_id] = max_tokens
                self.arrived.release()
        os._exit(0)

    def _run_streams(self) -> None:
        next_time = time.monotonic()
        while self.remaining:
            if self.steps_per_second:
                next_time += 1 / self.steps_per_second
                time.sleep(max(0.0, next_time - time.monotonic()))
            self._send_step()

    def _send_step(self) -> None:
        token_id = self.word_ids[self.step % NUM_WORDS]
        deltas = []
        for request_id, remaining in list(self.remaining.items()):
            delta = SequenceDelta(request_id, 0, [token_id])
            if request_id not in self.begun:
                self.begun.add(request_id)
                delta.num_cached_tokens, delta.queue_seconds = 0, 0.0
            if remaining == 1:
                delta.finish_reason = FinishReason.LENGTH
                del self.remaining[request_id]
            else:
                self.remaining[request_id] = remaining - 1
            deltas.append(delta)
        message = wire.encode(wire.Outputs(outputs=[StepOutputs(deltas=deltas)]))
        self.stamps[self.step] = time.monotonic()
        self.connection.sendall(message)
        self.step += 1


async def serve(connection: socket.socket) -> None:
    """The server process."""
    client = EngineClient(*await asyncio.open_unix_connection(sock=connection))
    await client.start()
    checkpoint = open_checkpoint(ModelConfig())
    processor = create_input_processor(ModelConfig(), checkpoint, load_tokenizer(checkpoint.tokenizer), client.info)
    engine = AsyncEngine(client, processor)
    server = ServerConfig(port=0)
    listener = bind(server)
    app = create_app(engine, server, model_names=["fake"])
    gc.collect()
    gc.freeze()
    await serve_app(app, listener, server, announce=lambda greeting: print(greeting, flush=True))
    await engine.close()


class StreamClient(asyncio.Protocol):
    """One request; keeps what arrives and when."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.pieces: list[tuple[float, bytes]] = []
        self.num_events = 0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Sends the request."""
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Notes the time."""
        self.pieces.append((time.monotonic(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closes after the answer."""
        self.ended.set_result(None)

    def words(self) -> Iterator[tuple[str, float]]:
        """Each word with the time at which its event was complete."""
        buffer = b""
        for moment, data in self.pieces:
            *frames, buffer = (buffer + data).split(b"\n\n")
            for frame in frames:
                payload = frame.partition(b"data: ")[2]
                if not payload.startswith(b"{"):
                    continue
                (choice,) = json.loads(payload)["choices"]
                words = re.findall(" [a-z]+", choice["delta"].get("content") or "")
                self.num_events += bool(words)
                for word in words:
                    yield word, moment


@dataclass
class Run:
    """One run's figures; times in milliseconds."""

    num_tokens: int
    num_events: int
    seconds: float
    cpu_seconds: float
    whole_way: list[float]
    per_token: list[float]

    def report(self) -> dict[str, float]:
        """What to print."""
        return {
            "tokens_per_second": self.num_tokens / self.seconds,
            "tokens_per_event": self.num_tokens / self.num_events,
            "cpu_seconds_per_10k_tokens": self.cpu_seconds / self.num_tokens * 10_000,
            "whole_way_p50_ms": statistics.median(self.whole_way),
            "whole_way_p99_ms": _p99(self.whole_way),
            "per_token_p50_ms": statistics.median(self.per_token),
            "per_token_p99_ms": _p99(self.per_token),
        }


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


async def run_streams(
    address: tuple[str, int], process: psutil.Process, num_streams: int, num_tokens: int
) -> tuple[list[StreamClient], float, float]:
    """Runs the streams; returns the clients, the seconds and the server's CPU seconds."""
    fields = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": num_tokens, "stream": True}
    body = json.dumps({**fields, "ignore_eos": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: quire\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    before, begin = process.cpu_times(), time.monotonic()
    clients: list[StreamClient] = []
    for _ in range(num_streams):
        _, client = await loop.create_connection(lambda: StreamClient(head.encode() + body), *address)
        clients.append(client)
    await asyncio.gather(*[client.ended for client in clients])
    seconds, after = time.monotonic() - begin, process.cpu_times()
    return clients, seconds, after.user + after.system - before.user - before.system


def evaluate(clients: list[StreamClient], stamps: Stamps, words: dict[str, int], first_step: int) -> Run:
    """Matches what arrived with what was sent."""
    numbers = {word: number for number, word in enumerate(words)}
    whole_way: list[float] = []
    last: dict[int, float] = {}
    counts: dict[int, int] = {}
    for client in clients:
        for offset, (word, moment) in enumerate(client.words()):
            step = first_step + offset
            assert numbers[word] == step % NUM_WORDS, f"{word!r} is not the word of step {step}"
            way = 1e3 * (moment - stamps[step])
            whole_way.append(way)
            last[step] = max(last.get(step, 0.0), way)
            counts[step] = counts.get(step, 0) + 1
    per_token = [way / counts[step] for step, way in last.items()]
    return Run(len(whole_way), sum(client.num_events for client in clients), 0.0, 0.0, whole_way, per_token)


@contextlib.contextmanager
def processes(num_streams: int, rate: float, stamps_path: Path) -> Iterator[tuple[tuple[str, int], psutil.Process]]:
    """Starts an engine and a server; yields the server's address and process."""
    ours, theirs = socket.socketpair()
    script = [sys.executable, __file__]
    engine = subprocess.Popen(
        [
            *(*script, "--role", "engine", "--fd", str(theirs.fileno()), "--streams", str(num_streams)),
            *("--rate", str(rate), "--stamps", str(stamps_path)),
        ],
        pass_fds=[theirs.fileno()],
    )
    server = subprocess.Popen(
        [*script, "--role", "server", "--fd", str(ours.fileno())],
        pass_fds=[ours.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    )
    ours.close()
    theirs.close()
    try:
        assert server.stdout is not None
        match = re.search(r"http://([\d.]+):(\d+)", server.stdout.readline())
        assert match is not None, "the server did not start"
        yield (match[1], int(match[2])), psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()
        engine.wait()


def measure(num_streams: int, num_tokens: int, rate: float) -> Run:
    """One run, after a short one to warm up."""
    words = step_words(load_tokenizer(open_checkpoint(ModelConfig()).tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stamps"
        path.write_bytes(bytes(MAX_STEPS * STAMP.size))
        stamps = Stamps(path)
        num_warm = 32
        with (
            processes(num_streams, rate, path) as (address, process),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(run_streams(address, process, num_streams, num_warm))
            gc.disable()
            clients, seconds, cpu_seconds = runner.run(run_streams(address, process, num_streams, num_tokens))
            gc.enable()
            run = evaluate(clients, stamps, words, num_warm)
    if run.num_tokens != num_streams * num_tokens:
        raise RuntimeError(f"{run.num_tokens} tokens arrived; the first answer begins {clients[0].pieces[:2]}")
    run.seconds, run.cpu_seconds = seconds, cpu_seconds
    return run


def play_role(options: argparse.Namespace) -> None:
    """What this script does as one of its own children."""
    connection = socket.socket(fileno=options.fd)
    if options.role == "server":
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(connection))
        return
    tokenizer = load_tokenizer(open_checkpoint(ModelConfig()).tokenizer)
    word_ids = list(step_words(tokenizer).values())
    FakeEngine(connection, Stamps(options.stamps), word_ids, tokenizer.vocab_size, options.streams, options.rate).run()


def main() -> int:
    """Measures, prints, and returns 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens-per-second", type=float, default=10_000.0, help="of all streams, in the paced run")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the paced run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    for name, kind in (("role", str), ("fd", int), ("stamps", Path), ("rate", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play_role(options)
        return 0
    rate = options.tokens_per_second / options.streams
    num_tokens = int(rate * options.seconds)
    runs = {
        "paced": measure(options.streams, num_tokens, rate).report(),
        "fast": measure(options.streams, num_tokens, 0.0).report(),
        "alone": measure(1, num_tokens, rate).report(),
    }
    cpu, per_token = runs["paced"]["cpu_seconds_per_10k_tokens"], runs["paced"]["per_token_p99_ms"]
    if options.json:
        print(json.dumps({"machine": platform.machine(), "streams": options.streams, **runs}))
    else:
        for name, figures in runs.items():
            print(name)
            for figure, value in figures.items():
                print(f"  {figure:28} {value:10.3f}")
        print("targets, in the paced run")
        print(f"cpu_seconds_per_10k_tokens {cpu:.3f}, target {TARGET_CPU_SECONDS}")
        print(f"per_token_p99_ms {per_token:.3f}, target {TARGET_PER_TOKEN_MILLISECONDS}")
    return int(cpu > TARGET_CPU_SECONDS or per_token > TARGET_PER_TOKEN_MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
