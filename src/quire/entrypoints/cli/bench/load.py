"""Sends requests when they are due and keeps what happened to each."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.entrypoints.cli.bench.client import HttpClient
from quire.entrypoints.cli.bench.datasets import BenchPrompt
from quire.entrypoints.cli.bench.metrics import RequestRecord
from quire.entrypoints.cli.bench.options import RequestSamplingOptions
from quire.entrypoints.cli.bench.streamed_answer import StreamedAnswer
from quire.errors import EngineProtocolError


@dataclass(frozen=True, slots=True)
class RequestMaker:
    """Turns prompts into request bodies.

    Attributes:
        extra: Merged into every body, and wins.
    """

    model: str
    is_chat: bool
    sampling: RequestSamplingOptions
    extra: Mapping[str, Any]

    def body(self, prompt: BenchPrompt) -> bytes:
        """The JSON body of a request for a stream with its usage."""
        if self.is_chat:
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt.prompt}]}
        else:
            asked = {"prompt": prompt.prompt}
        sampling = {name: getattr(self.sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        values = {
            "model": self.model,
            **asked,
            "max_tokens": prompt.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in sampling.items() if value is not None},
        }
        if self.sampling.ignore_eos:
            values["ignore_eos"] = True
        return json.dumps(values | dict(self.extra), separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a run produced.

    Attributes:
        records: In the order of the prompts.
        duration: Seconds from the first request until the last was answered.
        lateness: The most seconds by which the client itself was late to send a request that was due.
    """

    records: list[RequestRecord]
    duration: float
    lateness: float


async def run_load(
    send: Callable[[int, float], Awaitable[RequestRecord]],
    offsets: Sequence[float],
    max_concurrency: int | None,
    on_done: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Sends request i at `offsets[i]` seconds, or later while `max_concurrency` requests are open.

    Args:
        send: Called with the number of the request and the clock's reading at the start of the run.
        offsets: Seconds, rising.
        max_concurrency: None for no limit.
        on_done: Called after every answer.
    """
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    start = time.perf_counter()
    lateness = 0.0

    async def send_through_gate(number: int) -> RequestRecord:
        async with gate:
            record = await send(number, start)
        on_done()
        return record

    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, offset in enumerate(offsets):
            remaining = start + offset - time.perf_counter()
            if remaining > 0:
                await asyncio.sleep(remaining)
            tasks.append(group.create_task(send_through_gate(number)))
            if offset > 0:
                lateness = max(lateness, time.perf_counter() - start - offset)
    return LoadResult([task.result() for task in tasks], time.perf_counter() - start, lateness)


async def send_one(
    client: HttpClient, request: bytes, prompt: BenchPrompt, start: float, *, timeout_seconds: float
) -> RequestRecord:
    """Sends one request and reads its stream to the end. Every failure ends up in the record.

    Args:
        client: Where to send it.
        request: From `HttpClient.build_request`.
        prompt: What it asks.
        start: The clock's reading at the start of the run; the record's times count from it.
        timeout_seconds: After which the request counts as failed.
    """
    answer = StreamedAnswer()
    record = RequestRecord(prompt.num_input_tokens, sent_at=time.perf_counter() - start)
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await client.send(request, answer.take)
        record.error = answer.failure(response.status)
    except TimeoutError:
        record.error = f"no answer within {timeout_seconds:g} s"
    except OSError as error:
        record.error = f"connection failed: {error.strerror or error}"
    except EngineProtocolError as error:
        record.error = error.message
    record.finished_at = time.perf_counter() - start
    record.choice_times = [moment - start for moment in answer.choice_times]
    record.text = "".join(answer.texts)
    if answer.usage is not None:
        record.num_input_tokens = answer.usage.prompt_tokens
        record.num_output_tokens = answer.usage.completion_tokens or 0
    return record
