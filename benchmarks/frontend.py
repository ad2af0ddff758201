"""Time that the front end spends per token, and on building the small model's tokenizer.

    python benchmarks/frontend.py [--tokens 200000] [--json]

Tokens are drawn at random from the whole vocabulary, which is harder than real text: characters are torn and
bytes are wrong. `processor` is what one token of a running stream costs from the engine's delta to the output, and
`stream` what it costs from the engine's message to a reader of its own, with 256 of them on one event loop.
Prints microseconds per token and milliseconds per build, and fails if one misses its target.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from quire.checkpoint.checkpoint import open_checkpoint
from quire.config.model import ModelConfig
from quire.engine import wire
from quire.engine.port import EngineInfo
from quire.frontend.async_engine import AsyncEngine
from quire.frontend.chat_template import ChatTemplate
from quire.frontend.detokenizer import IncrementalDetokenizer
from quire.frontend.input_processor import InputProcessor
from quire.frontend.processor import OutputProcessor
from quire.frontend.stop_strings import StopStrings
from quire.frontend.tokenizer import Tokenizer, load_tokenizer
from quire.types.deltas import FinishReason, SequenceDelta, StepOutputs
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest
from quire.types.sampling import RequestOutputKind, SamplingParams

TARGETS = {
    "build_tokenizer_ms": 300.0,
    "detokenize_us": 5.0,
    "stop_strings_us": 5.0,
    "processor_us": 25.0,
    "stream_us": 40.0,
    "encode_chat_us": 500.0,
}
NUM_STREAMS = 256
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you today, and why?"}]


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def detokenize(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text of `ids`, token by token."""
    detokenizer = IncrementalDetokenizer(tokenizer, [1])
    return [detokenizer.append([token_id]) for token_id in ids]


def stop(pieces: list[str]) -> None:
    """Looks for stop strings that do not come."""
    stop_strings = StopStrings(["</s>", "\n\nUser:", "<|end|>"])
    for piece in pieces:
        stop_strings.feed(piece)


def process(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Streams `ids` to 256 requests, a token to each in a step."""
    processor = OutputProcessor(tokenizer)
    params = SamplingParams(max_tokens=len(ids), seed=1, output_kind=RequestOutputKind.DELTA)
    names = [RequestId(str(number)) for number in range(NUM_STREAMS)]
    for name in names:
        processor.add(GenerationRequest(request_id=name, prompt_token_ids=[1, 2, 3], sampling=params))
    for start in range(0, len(ids) - NUM_STREAMS, NUM_STREAMS):
        deltas = [
            SequenceDelta(request_id=name, sample_index=0, token_ids=[token_id])
            for name, token_id in zip(names, ids[start : start + NUM_STREAMS], strict=True)
        ]
        processor.apply(deltas, float(start))


class Replay:
    """An engine port that answers 256 requests with tokens known in advance, one each per message."""

    def __init__(self, info: EngineInfo, ids: list[int]) -> None:
        self.info = info
        self._ids = ids
        self._names: list[RequestId] = []
        self._ready = asyncio.Event()
        self._position = 0

    async def add(self, request: GenerationRequest) -> None:
        """Counts it; messages come once all are there."""
        self._names.append(request.request_id)
        if len(self._names) == NUM_STREAMS:
            self._ready.set()

    async def abort(self, request_ids: list[RequestId]) -> None:
        """Never called: all streams are read to their end."""

    async def receive(self) -> list[StepOutputs]:
        """The next message, decoded from its bytes; the last one ends all answers."""
        await self._ready.wait()
        start = self._position
        self._position += NUM_STREAMS
        last = self._position + NUM_STREAMS > len(self._ids)
        reason = FinishReason.LENGTH if last else None
        deltas = [
            SequenceDelta(request_id=name, sample_index=0, token_ids=[token_id], finish_reason=reason)
            for name, token_id in zip(self._names, self._ids[start:], strict=False)
        ]
        if last:
            self._ready.clear()
        message = wire.decode_from_engine(wire.encode(wire.Outputs(outputs=[StepOutputs(deltas=deltas)]))[4:])
        assert isinstance(message, wire.Outputs)
        # Lets the readers run, as waiting for a socket would.
        await asyncio.sleep(0)
        return message.outputs

    async def close(self) -> None:
        """Nothing to end."""


async def stream(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Streams `ids` through `AsyncEngine` to 256 readers."""
    info = EngineInfo(
        max_model_len=1 << 20,
        max_num_seqs=NUM_STREAMS,
        max_num_batched_tokens=1 << 14,
        scheduling_policy="fcfs",
        num_blocks=1 << 16,
        block_size=16,
        vocab_size=tokenizer.vocab_size,
        dtype="none",
        device="none",
        memory={},
        start_seconds={},
    )
    inputs = InputProcessor(tokenizer, max_model_len=info.max_model_len, vocab_size=info.vocab_size)
    engine = AsyncEngine(Replay(info, ids), inputs)
    params = SamplingParams(max_tokens=len(ids), output_kind=RequestOutputKind.DELTA)

    async def read() -> None:
        async for _ in engine.generate([1, 2, 3], params):
            pass

    await asyncio.gather(*(read() for _ in range(NUM_STREAMS)))
    await engine.close()


def measure(num_tokens: int) -> dict[str, float]:
    """All measurements, by the names of their targets."""
    checkpoint = open_checkpoint(ModelConfig())
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    rng = random.Random(0)
    ids = [rng.randrange(tokenizer.vocab_size) for _ in range(num_tokens)]
    assert checkpoint.chat_template is not None
    template = ChatTemplate(checkpoint.chat_template, named_tokens=tokenizer.named_tokens)
    pieces = detokenize(tokenizer, ids)
    return {
        "build_tokenizer_ms": 1e3 * seconds(lambda: load_tokenizer(checkpoint.tokenizer)),
        "detokenize_us": 1e6 * seconds(lambda: detokenize(tokenizer, ids)) / num_tokens,
        "stop_strings_us": 1e6 * seconds(lambda: stop(pieces)) / num_tokens,
        "processor_us": 1e6 * seconds(lambda: process(tokenizer, ids)) / num_tokens,
        "stream_us": 1e6 * seconds(lambda: asyncio.run(stream(tokenizer, ids))) / num_tokens,
        "encode_chat_us": 1e6 * seconds(lambda: template.encode(MESSAGES, tokenizer), repeats=200),
    }


def main() -> int:
    """Measures, prints, and returns 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    measured = measure(arguments.tokens)
    if arguments.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), **measured}))
    else:
        for name, value in measured.items():
            print(f"{name:20s} {value:9.2f}   target {TARGETS[name]:g}")
    return int(any(measured[name] > target for name, target in TARGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
