"""The bodies of requests. Every number and list has a bound; what the model can do is checked further down.

Fields that are not declared here pass unread (clients send bookkeeping such as `user` or `metadata`), except for
those in `refusals.py`. A field that is null counts as left out.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from quire.entrypoints.http import refusals
from quire.errors import InvalidRequestError, ParameterError
from quire.types.sampling import (
    MAX_LOGIT_BIAS,
    MAX_SAMPLES,
    MAX_SEED,
    MAX_STOP_TOKEN_IDS,
    SMALLEST_TEMPERATURE,
    SamplingParams,
)

MAX_MESSAGES = 4096
MAX_TEMPLATE_VARIABLES = 64
LARGEST_INT = 2**31 - 1

Count = Annotated[int, Field(ge=0, le=LARGEST_INT)]
CountOrAll = Annotated[int, Field(ge=-1, le=LARGEST_INT)]
TokenIds = Annotated[list[Count], Field(max_length=2**18)]

_SAME_NAME = (
    "n",
    "best_of",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "bad_words",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "allowed_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)


class StreamOptions(BaseModel):
    """What a stream reports beside the text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(BaseModel):
    """What chat and completion have in common."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str, Field(max_length=1024)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: CountOrAll | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: Annotated[float, Field(le=1e6)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stop: Any = None
    stop_token_ids: Annotated[list[Count], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    prompt_logprobs: CountOrAll | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_LOGIT_BIAS)] | None = None
    allowed_token_ids: TokenIds | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-LARGEST_INT, le=LARGEST_INT)] | None = None
    cache_salt: Annotated[str, Field(pattern=r"^[^@/\\\x00]{1,128}$")] | None = None
    request_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every frame of a stream carries the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def check(self) -> None:
        """Checks fields against each other.

        Raises:
            InvalidRequestError: Naming the field at fault.
        """
        refusals.refuse_unbuilt(self.model_extra or {}, self.refusals())
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream=true", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError("prompt_logprobs cannot be streamed", param="prompt_logprobs")
        if self.stream and self.best_of is not None and self.best_of > (self.n or 1):
            raise InvalidRequestError("best_of above n cannot be streamed", param="best_of")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise InvalidRequestError(
                f"max_tokens={both[0]} and max_completion_tokens={both[1]} contradict each other",
                param="max_completion_tokens",
            )

    def refusals(self) -> dict[str, refusals.Refusal]:
        """The fields that this kind of request refuses."""
        raise NotImplementedError

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """`defaults` with what the request says.

        Raises:
            ParameterError: Naming the field, its rule and the value.
        """
        changes = {name: value for name in _SAME_NAME if (value := getattr(self, name)) is not None}
        if 0.0 < changes.get("temperature", 0.0) < SMALLEST_TEMPERATURE:
            changes["temperature"] = SMALLEST_TEMPERATURE
        max_tokens = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        if max_tokens is not None:
            changes["max_tokens"] = max_tokens
        if self.stop is not None:
            changes["stop"] = _stop_strings(self.stop)
        if self.logit_bias is not None:
            changes["logit_bias"] = _logit_bias(self.logit_bias)
        return defaults.with_changes(**changes)

    def field_names(self) -> dict[str, str]:
        """The request's name of a sampling parameter, where it is another one."""
        if self.max_tokens is None and self.max_completion_tokens is not None:
            return {"max_tokens": "max_completion_tokens"}
        return {}


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Any = None
    echo: bool | None = None
    logprobs: CountOrAll | None = None
    add_special_tokens: bool | None = None

    @property
    def prompt_only(self) -> bool:
        """Whether only the prompt is wanted back: `echo` with no tokens to produce."""
        return bool(self.echo) and self.max_tokens == 0

    def refusals(self) -> dict[str, refusals.Refusal]:
        """See `GenerationBody`."""
        return refusals.COMPLETION

    def check(self) -> None:
        """See `GenerationBody`."""
        super().check()
        if self.echo and self.stream and self.logprobs is not None:
            raise InvalidRequestError(
                "logprobs cannot be streamed together with echo", hint="leave out stream", param="logprobs"
            )

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """See `GenerationBody`."""
        if self.prompt_only:
            body = self.model_copy(update={"max_tokens": 1, "max_completion_tokens": None})
            return body.sampling_params(defaults)
        changes: dict[str, Any] = {}
        if self.logprobs is not None:
            changes["logprobs"] = self.logprobs
            if self.echo and self.prompt_logprobs is None:
                changes["prompt_logprobs"] = self.logprobs
        return super().sampling_params(defaults).with_changes(**changes)


class ChatMessage(BaseModel):
    """One turn. `messages.py` checks what it holds."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Any = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    logprobs: bool | None = None
    top_logprobs: CountOrAll | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=MAX_TEMPLATE_VARIABLES)] | None = None

    def refusals(self) -> dict[str, refusals.Refusal]:
        """See `GenerationBody`."""
        return refusals.CHAT

    def check(self) -> None:
        """See `GenerationBody`."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """See `GenerationBody`."""
        params = super().sampling_params(defaults)
        return params.with_changes(logprobs=self.top_logprobs or 0) if self.logprobs else params

    def field_names(self) -> dict[str, str]:
        """See `GenerationBody`."""
        return super().field_names() | {"logprobs": "top_logprobs"}


def _stop_strings(stop: Any) -> list[str]:
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ParameterError("stop", "a string or a list of strings", stop)
    return texts


def _logit_bias(logit_bias: dict[str, float]) -> dict[int, float]:
    by_token = {}
    for key, bias in logit_bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise ParameterError("logit_bias", "a map from token ids to numbers", key)
        by_token[int(key)] = bias
    return by_token
