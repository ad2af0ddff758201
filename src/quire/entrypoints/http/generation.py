"""From a request to the streams of the engine that answer it."""

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request

from quire.entrypoints.http.body import read_body
from quire.entrypoints.http.prompts import check_number_of_answers
from quire.entrypoints.http.protocol import GenerationBody
from quire.entrypoints.http.state import ServerState, state_of
from quire.errors import InvalidRequestError, ParameterError
from quire.frontend.input_processor import Prompt
from quire.frontend.stream import OutputStream
from quire.types.outputs import RequestOutput
from quire.types.sampling import RequestOutputKind, SamplingParams

BodyT = TypeVar("BodyT", bound=GenerationBody)


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
        model_name = state.check_model(body.model)
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
        with _field_names(self.body.field_names()):
            params = self.body.sampling_params(defaults.with_changes(output_kind=kind))
            limit = self.state.engine.info.max_model_len
            if params.max_tokens is not None and params.max_tokens > limit:
                raise ParameterError("max_tokens", f"at most max_model_len={limit}", params.max_tokens)
        return params

    async def open(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, add_special_tokens: bool = True
    ) -> "Answers":
        """Hands the prompts to the engine. The caller must close what it gets.

        Raises:
            InvalidRequestError: A prompt or parameter that the model cannot serve.
            OverloadedError: Too many requests.
            EngineDeadError: The engine has ended.
        """
        check_number_of_answers(len(prompts), params.num_samples)
        unique = f"{self.answer_id}-{secrets.token_hex(4)}"
        streams: list[OutputStream] = []
        try:
            for index, prompt in enumerate(prompts):
                names = self.body.field_names()
                if len(prompts) > 1:
                    names = {**names, "prompt": f"prompt[{index}]"}
                with _field_names(names):
                    stream = await self.state.engine.submit(
                        prompt,
                        params,
                        f"{unique}-{index}",
                        priority=self.body.priority or 0,
                        cache_salt=self._cache_salt(),
                        add_special_tokens=add_special_tokens,
                        arrival_time=self.arrival_time,
                    )
                streams.append(stream)
        except BaseException:
            Answers(streams).close()
            raise
        return Answers(streams)

    def _cache_salt(self) -> str | None:
        """Holders of different keys never share prefixes; within a key, requests with different salts do not."""
        parts = [part for part in (self.request.state.key_salt, self.body.cache_salt) if part]
        if len(parts) == 2:
            return hashlib.sha256(":".join(parts).encode()).hexdigest()[:32]
        return parts[0] if parts else None


class Answers:
    """The streams that answer one request, one per prompt."""

    def __init__(self, streams: Sequence[OutputStream]) -> None:
        self._streams = streams

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

    async def news(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Outputs of all prompts as they come, each with the number of its prompt."""
        if len(self._streams) == 1:
            async for output in self._streams[0]:
                yield 0, output
            return
        async with contextlib.aclosing(_merge(self._streams)) as merged:
            async for item in merged:
                yield item


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
def _field_names(names: Mapping[str, str]) -> Iterator[None]:
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
