"""From a request to the streams of the engine that answer it."""

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request

from quire.entrypoints.http.body import read_body
from quire.entrypoints.http.prompts import check_number_of_answers
from quire.entrypoints.http.quota import Account
from quire.entrypoints.http.request_body import TIMEOUT_HEADER, RequestBody, read_timeout
from quire.entrypoints.http.served_request import served_request_of
from quire.entrypoints.http.state import ServerState, state_of
from quire.errors import InvalidRequestError, ParameterError
from quire.frontend.admission import Terms
from quire.frontend.input_processor import Prompt
from quire.frontend.stream import OutputStream
from quire.types.outputs import CompletionOutput, RequestOutput
from quire.types.sampling import RequestOutputKind, SamplingParams

BodyT = TypeVar("BodyT", bound=RequestBody)


@dataclass(frozen=True, slots=True)
class Call(Generic[BodyT]):
    """A request for answers that has been read and checked as far as possible without the model.

    Attributes:
        model_name: The name to show in the answer.
        answer_id: The id to show in the answer.
        created: Seconds since the epoch.
        arrival_time: Seconds on the host's monotonic clock.
    """

    state: ServerState
    request: Request
    body: BodyT
    model_name: str
    answer_id: str
    created: int
    arrival_time: float

    @classmethod
    async def read(cls, request: Request, body_type: type[BodyT], id_prefix: str) -> "Call[BodyT]":
        """Reads a request.

        Raises:
            ServerStoppingError: No new work is taken.
            InvalidRequestError: The body breaks a rule.
            ModelNotFoundError: It is for another model.
        """
        state = state_of(request)
        state.activity.admit()
        body = await read_body(request, body_type, state.config.max_body_bytes)
        model_name = state.check_model(body.model, request)
        body.check()
        tail = request.state.request_id
        if body.request_id is not None and not request.state.has_own_request_id:
            tail = body.request_id
        return cls(state, request, body, model_name, id_prefix + tail, int(time.time()), time.monotonic())

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """How to continue: the request's wishes over `defaults`.

        Raises:
            ParameterError: A wish that cannot be granted, under the name it has in the request.
        """
        kind = RequestOutputKind.DELTA if self.body.stream else RequestOutputKind.FINAL_ONLY
        with renamed_fields(self.body.field_names()):
            params = self.body.sampling_params(defaults.with_changes(output_kind=kind))
            limit = self.state.engine.info.max_model_len
            if params.max_tokens is not None and params.max_tokens > limit:
                raise ParameterError("max_tokens", f"at most max_model_len={limit}", params.max_tokens)
        return params

    async def open(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        add_special_tokens: bool = True,
        shown_special_tokens: Set[str] = frozenset(),
    ) -> "Answers":
        """Hands the prompts to the engine. The caller must close what it gets.

        Raises:
            InvalidRequestError: A prompt or parameter that the model cannot serve.
            OverloadedError: Too many requests, of all or of this key.
            DeadlineError: The request's time is over.
            EngineDeadError: The engine has ended.
        """
        check_number_of_answers(len(prompts), params.num_samples)
        unique = f"{self.answer_id}-{secrets.token_hex(4)}"
        streams: list[OutputStream] = []
        terms, account = self._terms(), self.request.state.account
        served = served_request_of(self.request)
        served.model, served.answer_id = self.model_name, self.answer_id
        try:
            for index, prompt in enumerate(prompts):
                names = self.body.field_names()
                if len(prompts) > 1:
                    names = {**names, "prompt": f"prompt[{index}]"}
                with renamed_fields(names):
                    stream = await self.state.engine.submit(
                        prompt,
                        params,
                        f"{unique}-{index}",
                        priority=account.priority(self.body.priority) if account else self.body.priority or 0,
                        terms=terms,
                        cache_salt=self._cache_salt(),
                        add_special_tokens=add_special_tokens,
                        shown_special_tokens=shown_special_tokens,
                        arrival_time=self.arrival_time,
                    )
                streams.append(stream)
                served.generations.append(stream.state)
        except BaseException:
            Answers(streams).close()
            raise
        return Answers(streams, max(self.state.config.stream_interval, self.body.stream_interval or 1))

    def _terms(self) -> Terms:
        """Whose request it is, and how long it may take: as the body says or the header, whichever is shorter."""
        seconds = [self.body.timeout, read_timeout(self.request.headers.get(TIMEOUT_HEADER))]
        given = [value for value in seconds if value is not None]
        deadline = self.arrival_time + min(given) if given else None
        account: Account | None = self.request.state.account
        if account is None:
            return Terms(deadline=deadline)
        key = account.key
        return Terms(tenant=key.name, weight=key.weight, deadline=deadline, reserve=account.reserve)

    def _cache_salt(self) -> str | None:
        """Holders of different keys never share prefixes; within a key, requests with different salts do not."""
        parts = [part for part in (self.request.state.key_salt, self.body.cache_salt) if part]
        if len(parts) == 2:
            return hashlib.sha256(":".join(parts).encode()).hexdigest()[:32]
        return parts[0] if parts else None


class Answers:
    """The streams that answer one request, one per prompt.

    Args:
        interval: Tokens of an answer that `news` waits for, but for its first and its last ones.
    """

    def __init__(self, streams: Sequence[OutputStream], interval: int = 1) -> None:
        self._streams = streams
        self._interval = interval

    def close(self) -> None:
        """Ends in the engine what has not ended. May be called again."""
        for stream in self._streams:
            stream.close()

    async def finals(self) -> list[RequestOutput]:
        """The last output of every prompt. What waits to be read is merged, so reading them in turn costs nothing."""
        finals = []
        for stream in self._streams:
            async for output in stream:
                final = output
            finals.append(final)
        return finals

    def news(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Outputs of all prompts as they come, each with the number of its prompt. Close it when leaving early."""
        outputs = _merge(self._streams) if len(self._streams) > 1 else _numbered(self._streams[0])
        return outputs if self._interval == 1 else _paced(outputs, self._interval)


async def _numbered(stream: OutputStream) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    async for output in stream:
        yield 0, output


async def _paced(
    outputs: AsyncGenerator[tuple[int, RequestOutput], None], interval: int
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Holds back the pieces of an answer until they have `interval` tokens together."""
    held: dict[tuple[int, int], CompletionOutput | None] = {}
    async with contextlib.aclosing(outputs):
        async for prompt_index, output in outputs:
            output.outputs = [
                ready
                for completion in output.outputs
                if (ready := _held_back(held, (prompt_index, completion.index), completion, interval)) is not None
            ]
            if output.outputs:
                yield prompt_index, output


def _held_back(
    held: dict[tuple[int, int], CompletionOutput | None], key: tuple[int, int], new: CompletionOutput, interval: int
) -> CompletionOutput | None:
    """What is held of an answer with what is new, if it is enough to show; otherwise None. Modifies `held`."""
    earlier = held.get(key)
    piece = new if earlier is None else _joined(earlier, new)
    waits = key in held and not piece.finished and len(piece.token_ids) < interval
    held[key] = piece if waits else None
    return None if waits else piece


def _joined(earlier: CompletionOutput, later: CompletionOutput) -> CompletionOutput:
    """Two pieces of an answer as one. Modifies `later`."""
    later.text = earlier.text + later.text
    later.token_ids = earlier.token_ids + later.token_ids
    if earlier.logprobs is not None and later.logprobs is not None:
        later.logprobs = earlier.logprobs + later.logprobs
    return later


async def _merge(streams: Sequence[OutputStream]) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Reads several streams at once. The first to fail fails them all."""
    mailbox: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue(maxsize=len(streams))

    async def forward(index: int, stream: OutputStream) -> None:
        last: Exception | None = None
        try:
            async for output in stream:
                await mailbox.put((index, output))
        except Exception as error:  # noqa: BLE001 (raised again by the reader)
            last = error
        await mailbox.put((index, last))

    tasks = [asyncio.create_task(forward(index, stream)) for index, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            index, item = await mailbox.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextlib.contextmanager
def renamed_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Puts the request's own names of fields into errors that know them by other names."""
    try:
        yield
    except InvalidRequestError as error:
        name = names.get(error.param or "")
        if name is not None and error.param is not None:
            if error.message.startswith(error.param + " "):
                error.message = name + error.message[len(error.param) :]
            error.param = name
        raise
