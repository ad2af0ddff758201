"""One stream of outputs per request, over an engine that may be another process."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Set
from dataclasses import replace
from typing import Any, Protocol

from quire.engine.port import EngineInfo, EnginePort
from quire.errors import DeadlineError, EngineDeadError, OverloadedError
from quire.frontend.admission import Admission, Terms
from quire.frontend.chat_template import ChatPrompt
from quire.frontend.grammar_guard import GrammarGuard
from quire.frontend.input_processor import InputProcessor, ProcessedInput, Prompt
from quire.frontend.processor import OutputProcessor, RequestState
from quire.frontend.stream import OutputStream
from quire.types.deltas import StepOutputs
from quire.types.ids import RequestId
from quire.types.outputs import RequestOutput
from quire.types.request import GenerationRequest
from quire.types.sampling import SamplingParams
from quire.types.stats import EngineStats

logger = logging.getLogger("quire.frontend")

LONG_PROMPT_CHARACTERS = 16_384
"""Prompts above this are tokenised in a thread, so that they do not delay the streams of others."""

NO_TERMS = Terms()
"""Nobody's, for as long as it takes."""

_DRAIN_RETRY_SECONDS = 10.0


class EngineObserver(Protocol):
    """Someone who counts what happens: metrics, logs. Methods must be quick and may not block.

    One that also has the method of `TokenObserver` is told about every batch of tokens.
    """

    def on_stats(self, stats: EngineStats) -> None:
        """The engine has finished a step."""

    def on_finished(self, output: RequestOutput, request: GenerationRequest) -> None:
        """A request has ended, in whatever way. `output` has everything that it produced."""


class TokenObserver(EngineObserver, Protocol):
    """An observer that also wants to know about every batch of tokens."""

    def on_tokens(self, num_tokens: int, seconds: float, first: bool) -> None:
        """Tokens of one sample came, `seconds` after its last ones, or for its `first` ones after the arrival."""


class AsyncEngine:
    """An engine for many callers on one event loop.

    Args:
        max_num_queued_reqs: Requests in the engine; further ones are refused.
        max_num_queued_tokens: Prompt tokens that wait for the engine, likewise.
        guard: Checks grammars before they go to the engine; None leaves that to the engine.
        observers: Told about statistics and finished requests.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        port: EnginePort,
        input_processor: InputProcessor,
        *,
        max_num_queued_reqs: int = 4096,
        max_num_queued_tokens: int | None = None,
        guard: GrammarGuard | None = None,
        observers: Iterable[EngineObserver] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.input = input_processor
        self.port = port
        self.observers = list(observers)
        self.stats: EngineStats | None = None
        self._clock = clock
        self._guard = guard
        self._admission = Admission(max_num_queued_reqs, max_num_queued_tokens)
        self._processor = OutputProcessor(input_processor.tokenizer, on_tokens=self._observe_tokens)
        self._streams: dict[RequestId, OutputStream] = {}
        self._deadlines: dict[RequestId, asyncio.TimerHandle] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._death: EngineDeadError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._aborts: list[RequestId] = []
        self._has_aborts = asyncio.Event()

    @property
    def info(self) -> EngineInfo:
        """What the engine has settled on."""
        return self.port.info

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._admission)

    @property
    def is_healthy(self) -> bool:
        """Whether requests can be served."""
        return self._death is None

    def check_health(self) -> None:
        """Does nothing if requests can be served.

        Raises:
            EngineDeadError: They cannot.
        """
        if self._death is not None:
            raise EngineDeadError(self._death.message, hint=self._death.hint)

    def start(self) -> None:
        """Begins to listen to the engine; needs a running event loop. `submit` does it too."""
        if not self._tasks and self._death is None:
            jobs = (self._receive, self._send_aborts)
            self._tasks = [asyncio.create_task(self._run_until_death(job)) for job in jobs]

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, request_id: str | None = None, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of a request, until it has ended. Leaving early, also by cancellation, ends it in the engine.

        Options and errors are those of `submit` and of `OutputStream`. Nothing happens before the first iteration.
        """
        stream = await self.submit(prompt, params, request_id, **options)
        try:
            async for output in stream:
                yield output
        finally:
            stream.close()

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        terms: Terms = NO_TERMS,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
        shown_special_tokens: Set[str] = frozenset(),
        arrival_time: float | None = None,
    ) -> OutputStream:
        """Hands a request to the engine; the caller must iterate the stream to its end or close it.

        Args:
            prompt: Text, token ids or an object, see `InputProcessor.process`.
            params: How to continue; default is the model's own defaults.
            request_id: Unique among those running; default is a fresh one.
            priority: Lower runs first under the priority policy.
            terms: Whose request it is, and how long it may take.
            cache_salt: Shares cached prefixes only with equal salts.
            add_special_tokens: Put bos in front where the model is used to it.
            shown_special_tokens: Control tokens that appear in the text even if `params` hide them.
            arrival_time: Seconds on the host's monotonic clock; default is now.

        Raises:
            InvalidRequestError: The prompt or a parameter breaks a rule.
            OverloadedError: Too many requests, or the engine is being shut down.
            DeadlineError: The request's time is over.
            EngineDeadError: The engine has ended.
        """
        arrival_time = self._clock() if arrival_time is None else arrival_time
        request_id = uuid.uuid4().hex if request_id is None else request_id
        self._admit(request_id, terms, params)
        self.start()
        try:
            processed = await self._process(
                prompt,
                params,
                request_id=request_id,
                priority=priority,
                cache_salt=cache_salt,
                add_special_tokens=add_special_tokens,
                arrival_time=arrival_time,
            )
            await self._check_grammar(processed)
            self.check_health()
            stream = self._open_stream(processed, terms, shown_special_tokens)
        except BaseException:
            self._admission.leave(request_id)
            self._note_idle()
            raise
        try:
            await self.port.add(stream.state.request)
        except BaseException:
            stream.close()
            raise
        return stream

    async def encode_chat(self, messages: Any, **options: Any) -> ChatPrompt:
        """A chat as a prompt; see `InputProcessor.encode_chat`. Runs in a thread: templates may be slow."""
        return await asyncio.to_thread(self.input.encode_chat, messages, **options)

    async def abort(self, request_ids: str | Iterable[str]) -> None:
        """Ends requests; their streams show what has come of them, with `FinishReason.ABORT`. Unknown ids are fine."""
        ids = [request_ids] if isinstance(request_ids, str) else request_ids
        self._abort_requests([RequestId(request_id) for request_id in ids])

    async def start_profile(self) -> None:
        """Begins to record a trace of the engine; see `EnginePort.start_profile`."""
        self.check_health()
        self.start()
        await self.port.start_profile()

    async def stop_profile(self) -> str:
        """Ends it and returns the trace's path, on the engine's machine; see `EnginePort.stop_profile`."""
        self.check_health()
        self.start()
        return await self.port.stop_profile()

    async def wait_until_idle(self) -> None:
        """Waits until every request has ended."""
        await self._idle.wait()

    async def drain(self, timeout_seconds: float) -> int:
        """Refuses new requests and waits for the running ones; then ends those that are left.

        Returns:
            How many did not finish in time.
        """
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        except TimeoutError:
            stragglers = list(self._streams)
            self._abort_requests(stragglers)
            return len(stragglers)
        return 0

    async def close(self) -> None:
        """Ends the engine. Streams that still run raise `EngineDeadError`."""
        self._die(EngineDeadError("the engine was shut down"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._guard is not None:
            await self._guard.close()
        await self.port.close()

    def _admit(self, request_id: str, terms: Terms, params: SamplingParams | None) -> None:
        self.check_health()
        if self._draining:
            raise OverloadedError(
                "the server is shutting down and takes no more requests", retry_after_seconds=_DRAIN_RETRY_SECONDS
            )
        self._admission.enter(request_id, terms.tenant, params.num_samples if params else 1, self._clock())
        self._idle.clear()

    async def _process(self, prompt: Prompt, params: SamplingParams | None, **options: Any) -> ProcessedInput:
        text = prompt.get("prompt") if isinstance(prompt, dict) else prompt
        if isinstance(text, str) and len(text) > LONG_PROMPT_CHARACTERS:
            return await asyncio.to_thread(self.input.process, prompt, params, **options)
        return self.input.process(prompt, params, **options)

    async def _check_grammar(self, processed: ProcessedInput) -> None:
        structured = processed.params.structured_outputs
        if structured is not None and self._guard is not None:
            await self._guard.check(processed.request.grammar, f"structured_outputs.{structured.kind}")

    def _open_stream(self, processed: ProcessedInput, terms: Terms, shown_special_tokens: Set[str]) -> OutputStream:
        request, now = replace(processed.request, tenant=terms.tenant, weight=terms.weight), self._clock()
        request_id = request.request_id
        if terms.deadline is not None and now >= terms.deadline:
            raise DeadlineError("the request's time was over before the engine got it")
        self._admission.queue(request_id, len(request.prompt_token_ids), now, terms.deadline)
        state = self._processor.add(
            request, processed.prompt, processed.params, shown_special_tokens=shown_special_tokens
        )
        if terms.reserve is not None:
            try:
                terms.reserve(request)
            except BaseException:
                self._processor.abort([request_id], now)
                raise
        stream = self._streams[request_id] = OutputStream(state, self._close_stream)
        if terms.deadline is not None:
            timer = asyncio.get_running_loop().call_later(terms.deadline - now, self._expire, request_id)
            self._deadlines[request_id] = timer
        return stream

    def _expire(self, request_id: RequestId) -> None:
        """A request's time is over."""
        error = DeadlineError("the request's time is over, and its answer is not complete")
        for state in self._processor.fail([request_id], error.message, self._clock()):
            self._streams[request_id].blame(error)
            self._finish(state)
            self._queue_aborts([request_id])

    def _close_stream(self, stream: OutputStream) -> None:
        # Its id may belong to a later request by now.
        if self._streams.get(stream.request_id) is stream:
            self._abort_requests([stream.request_id])

    def _abort_requests(self, request_ids: Iterable[RequestId]) -> None:
        """Ends requests here, and has them ended in the engine."""
        states = self._processor.abort(request_ids, self._clock())
        for state in states:
            self._finish(state)
        self._queue_aborts([state.request.request_id for state in states])

    def _queue_aborts(self, request_ids: list[RequestId]) -> None:
        if request_ids and self._death is None:
            self._aborts += request_ids
            self._has_aborts.set()

    def _finish(self, state: RequestState) -> None:
        """A request has ended: lets its stream see the end and everybody else forget it."""
        request_id = state.request.request_id
        self._admission.leave(request_id, self._clock())
        if (timer := self._deadlines.pop(request_id, None)) is not None:
            timer.cancel()
        self._streams.pop(request_id).notify()
        self._note_idle()
        for observer in self.observers:
            _tell(observer.on_finished, state.whole(), state.request)

    def _note_idle(self) -> None:
        if self.num_requests == 0:
            self._idle.set()

    async def _run_until_death(self, job: Callable[[], Awaitable[None]]) -> None:
        """Repeats `job`; whatever it raises is the end of the engine."""
        try:
            while True:
                await job()
        except EngineDeadError as error:
            self._die(error)
        except Exception as error:
            logger.exception("the connection to the engine fails")
            self._die(EngineDeadError(f"the connection to the engine failed: {type(error).__name__}"))

    async def _receive(self) -> None:
        for outputs in await self.port.receive():
            self._take(outputs)

    def _take(self, outputs: StepOutputs) -> None:
        now = self._clock()
        update = self._processor.update(outputs, now)
        for state in update.changed:
            if not state.left_queue and state.metrics.first_token_time is not None:
                state.left_queue = True
                self._admission.start(state.request.request_id, now)
            if state.finished:
                self._finish(state)
            elif state.shows_progress:
                self._streams[state.request.request_id].notify()
        self._queue_aborts(update.aborts)
        if outputs.stats is not None:
            self.stats = outputs.stats
            for observer in self.observers:
                _tell(observer.on_stats, outputs.stats)

    async def _send_aborts(self) -> None:
        await self._has_aborts.wait()
        self._has_aborts.clear()
        request_ids, self._aborts = self._aborts, []
        await self.port.abort(request_ids)

    def _die(self, error: EngineDeadError) -> None:
        """Every stream learns of the engine's end, at once. Only the first cause counts."""
        if self._death is not None:
            return
        self._death = error
        lost = self._processor.fail(list(self._streams), error.message, self._clock())
        if lost:
            logger.error("%d requests are lost: %s", len(lost), error.message)
        for state in lost:
            self._streams[state.request.request_id].blame(error)
            self._finish(state)

    def _observe_tokens(self, num_tokens: int, seconds: float, first: bool) -> None:
        for observer in self.observers:
            on_tokens = getattr(observer, "on_tokens", None)
            if on_tokens is not None:
                _tell(on_tokens, num_tokens, seconds, first)


def _tell(callback: Callable[..., None], *values: Any) -> None:
    """Calls an observer; its failure is its own."""
    try:
        callback(*values)
    except Exception:
        logger.exception("an observer of the engine failed")
