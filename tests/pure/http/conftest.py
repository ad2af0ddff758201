"""A server over the real front end, scheduler and loop; only the model is a fake, which draws printable ASCII."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from quire.checkpoint.tokenizer_source import TokenizerSource
from quire.config.server import ServerConfig
from quire.engine.loop import EngineLoop
from quire.engine.port import EngineInfo
from quire.engine.stop import make_stop_check
from quire.entrypoints.http.app import create_app
from quire.entrypoints.http.metrics import ServerMetrics
from quire.entrypoints.http.server import bind, serve_app
from quire.errors import EngineDeadError, InvalidRequestError
from quire.frontend.async_engine import AsyncEngine
from quire.frontend.chat_template import ChatTemplate
from quire.frontend.input_processor import InputProcessor
from quire.frontend.tokenizer import Tokenizer, load_tokenizer
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.testing.clock import VirtualClock
from quire.testing.fake_executor import FakeExecutor
from quire.types.deltas import StepOutputs
from quire.types.ids import RequestId
from quire.types.plan import PositionLogprobs
from quire.types.request import GenerationRequest

MAX_MODEL_LEN = 512
NUM_PRINTABLE = 95
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if shout is defined %}{{ shout }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token per byte; the first ids are printable ASCII, in order from the space."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    printable = ["Ġ", *(chr(code) for code in range(33, 127))]
    symbols = printable + sorted(set(alphabet) - set(printable))
    backend = Backend(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return load_tokenizer(TokenizerSource("tokenizer.json", path, {"eos_token": "<|im_end|>"}))


@pytest.fixture(scope="session")
def processor(tokenizer: Tokenizer) -> InputProcessor:
    return InputProcessor(
        tokenizer,
        max_model_len=MAX_MODEL_LEN,
        vocab_size=tokenizer.vocab_size,
        template=ChatTemplate(TEMPLATE, named_tokens=tokenizer.named_tokens),
        allows_priority=True,
    )


class LoopPort:
    """The loop behind a port, on the event loop of the test.

    Attributes:
        may_step: Cleared, it holds the engine still.
        death: Set, it is what `receive` raises.
        recording: Whether a trace is.
    """

    def __init__(self, vocab_size: int) -> None:
        cache = KVCacheManager(num_blocks=256, block_size=16)
        self.scheduler = Scheduler(
            cache=cache,
            max_num_seqs=16,
            max_num_batched_tokens=256,
            max_model_len=MAX_MODEL_LEN,
            check_stop=make_stop_check(MAX_MODEL_LEN),
        )
        self.executor = FakeExecutor(clock=VirtualClock(), num_blocks=256, vocab_size=NUM_PRINTABLE)
        self.loop = EngineLoop(self.scheduler, self.executor, time.monotonic)
        self.info = EngineInfo(
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=16,
            max_num_batched_tokens=256,
            scheduling_policy="priority",
            num_blocks=256,
            block_size=16,
            vocab_size=vocab_size,
            dtype="float32",
            device="cpu",
            memory={},
            start_seconds={},
        )
        self.requests: list[GenerationRequest] = []
        self.may_step = asyncio.Event()
        self.may_step.set()
        self.death: EngineDeadError | None = None
        self.recording = False
        self._changed = asyncio.Event()

    async def add(self, request: GenerationRequest) -> None:
        self.requests.append(request)
        self.loop.add(request)
        self._changed.set()

    async def abort(self, request_ids: list[RequestId]) -> None:
        for request_id in request_ids:
            self.loop.abort(request_id)
        self._changed.set()

    async def start_profile(self) -> None:
        if self.recording:
            raise InvalidRequestError("a profile is being recorded already", hint="stop it first")
        self.recording = True

    async def stop_profile(self) -> str:
        if not self.recording:
            raise InvalidRequestError("no profile is being recorded", hint="start one first")
        self.recording = False
        return "/traces/quire-1.json.gz"

    async def receive(self) -> list[StepOutputs]:
        while True:
            if self.death is not None:
                raise self.death
            if self._changed.is_set() or (self.may_step.is_set() and self.loop.has_unfinished):
                break
            waiting = self.may_step.wait() if self.loop.has_unfinished else self._changed.wait()
            await waiting
        self._changed.clear()
        await asyncio.sleep(0)
        if not self.may_step.is_set():
            return [StepOutputs(stats=self.scheduler.statistics())]
        return [self.loop.step()]

    def die(self) -> None:
        self.death = EngineDeadError("the engine process ended with code -9")
        self._changed.set()
        self.may_step.set()

    async def close(self) -> None:
        pass


@dataclass
class Harness:
    """A server and what a test needs to look behind it."""

    app: FastAPI
    engine: AsyncEngine
    port: LoopPort
    metrics: ServerMetrics
    client: httpx.AsyncClient

    @staticmethod
    def chat_body(text: str = "Hello", **fields: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}], "seed": 3, "max_tokens": 8, **fields}

    @staticmethod
    def events(response: httpx.Response) -> list[dict[str, Any]]:
        """The events of a stream; checks that it is framed well and ends with [DONE]."""
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse_events(response.content)

    @staticmethod
    async def until(holds: Callable[[], bool]) -> None:
        """Lets the event loop turn until something holds; gives up after a minute."""
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 (what holds is not ours to signal)
                await asyncio.sleep(0)

    def exchange(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> "Exchange":
        """A request that has been sent and whose client can leave."""
        exchange = Exchange(self.app, path, body, headers or {})
        exchange.start()
        return exchange

    async def post(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options)

    async def chat(self, text: str = "Hello", **fields: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", self.chat_body(text, **fields))

    async def complete(self, prompt: Any = "Hello", **fields: Any) -> httpx.Response:
        return await self.post("/v1/completions", {"prompt": prompt, "seed": 3, **fields})


def parse_events(content: bytes) -> list[dict[str, Any]]:
    frames = content.decode().split("\n\n")
    assert frames[-1] == ""
    assert frames[-2] == "data: [DONE]"
    assert all(frame.startswith("data: ") for frame in frames[:-1])
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


@dataclass
class Exchange:
    """One request driven message by message, so that the client can leave in the middle of it."""

    app: FastAPI
    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def start(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                *((name.encode(), value.encode()) for name, value in self.headers.items()),
            ],
            "client": None,
            "server": None,
        }
        self._to_app.put_nowait({"type": "http.request", "body": json.dumps(self.body).encode(), "more_body": False})
        self.task = asyncio.create_task(self.app(scope, self._to_app.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._to_app.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def content(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def events(self) -> list[dict[str, Any]]:
        return parse_events(self.content)


@pytest.fixture(scope="session")
def serve(processor: InputProcessor) -> Any:
    """An asynchronous context manager that starts a server; takes arguments of `create_app`'s and `ServerConfig`'s."""

    @asynccontextmanager
    async def start(
        *, max_num_queued_reqs: int = 4096, with_profiles: bool = False, **settings: Any
    ) -> AsyncIterator[Harness]:
        port = LoopPort(processor.vocab_size)
        engine = AsyncEngine(port, processor, max_num_queued_reqs=max_num_queued_reqs)
        metrics = ServerMetrics("fake", engine.info)
        app = create_app(
            engine,
            ServerConfig(**settings),
            model_names=["fake", "alias"],
            metrics=metrics,
            with_profiles=with_profiles,
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Harness(app, engine, port, metrics, client)
        await engine.close()

    return start


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the fake model write a text, whatever it is asked, and then end."""

    def play(harness: Harness, text: str) -> None:
        tokenizer = harness.engine.input.tokenizer
        token_ids = [*tokenizer.encode(text, add_special_tokens=False), *tokenizer.eos_token_ids[:1]]

        def draw(resident: Any, result: Any, banned: Any) -> int:
            new = resident.description
            token_id = token_ids[len(resident.token_ids) - new.num_prompt_tokens]
            resident.token_ids.append(token_id)
            if new.sampling.logprobs is not None:
                result.logprobs[new.sequence_id] = PositionLogprobs([token_id], [-1.0], [1])
            return token_id

        monkeypatch.setattr(harness.port.executor, "_draw", draw)

    return play


@pytest.fixture(scope="module")
async def quiet(serve: Any) -> AsyncIterator[Harness]:
    """A server for many tests, none of which leaves anything running."""
    async with serve() as server:
        yield server


@dataclass
class Running:
    """A server that listens."""

    harness: Any
    greeting: str
    address: tuple[str, int]
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    async def exchange(self, request: bytes) -> bytes:
        """Sends bytes and reads until the server closes. A reset may take the reply along."""
        reader, writer = await asyncio.open_connection(*self.address)
        reply = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            writer.write(request)
            while piece := await reader.read(65536):
                reply += piece
        writer.close()
        return reply


@pytest.fixture(scope="session")
def run_server(serve: Any) -> Any:
    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[Running]:
        async with serve(port=0, **settings) as harness:
            config = harness.app.state.server.config
            listener = bind(config)
            address = listener.getsockname()
            announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(serve_app(harness.app, listener, config, announced.set_result))
            either: set[asyncio.Future[Any]] = {task, announced}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            assert announced.done(), task.result()
            yield Running(harness, announced.result(), address, task)
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await task

    return start
