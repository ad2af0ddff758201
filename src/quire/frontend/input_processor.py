"""From prompts and parameters to requests; everything that can be refused is refused here."""

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from quire.checkpoint.checkpoint import Checkpoint
from quire.config.model import ModelConfig
from quire.engine.port import EngineInfo
from quire.errors import ConfigError, InvalidRequestError, ParameterError, PromptTooLongError
from quire.frontend.chat_template import ChatPrompt, ChatTemplate
from quire.frontend.structured_outputs import lower
from quire.frontend.tokenizer import Tokenizer
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest
from quire.types.sampling import RequestOutputKind, SamplingParams

logger = logging.getLogger("quire.frontend")

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or an object with `prompt` or `prompt_token_ids` (or both: then the text is only shown)
and `cache_salt`."""

MAX_BAD_WORD_TOKENS = 4096
MAX_CACHE_SALT_CHARACTERS = 128
MAX_REQUEST_ID_CHARACTERS = 256
_SEED_BITS = 63

_PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids", "cache_salt"})


@dataclass(frozen=True, slots=True)
class ProcessedInput:
    """A request for the engine and what the front end keeps of it.

    Attributes:
        prompt: The text, None where ids were given.
        params: As the user gave them, with `max_tokens` and `seed` filled in. `request.sampling` differs from
            them where the front end needs more from the engine than the user wants to see.
    """

    request: GenerationRequest
    prompt: str | None
    params: SamplingParams


class InputProcessor:
    """Turns prompts into requests for one model. May be used by several threads.

    Args:
        max_model_len: Prompt and answer together, in tokens.
        vocab_size: Of the model.
        template: Its chat template, None if it has none.
        template_problem: Why there is none, where the model's own cannot be used.
        generation_defaults: Sampling parameters that the model brings along, by their names in `SamplingParams`.
        eos_token_ids: Tokens that end an answer, beside the tokenizer's.
        max_logprobs: Most alternatives a request may ask for; -1 for no limit.
        allows_priority: Whether the engine orders requests by priority.
        seed: Seeds the requests that name none.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: `generation_defaults` has values that no request could have.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_model_len: int,
        vocab_size: int,
        template: ChatTemplate | None = None,
        template_problem: str = "the model has no chat template",
        generation_defaults: Mapping[str, Any] | None = None,
        eos_token_ids: Iterable[int] = (),
        max_logprobs: int = 20,
        allows_priority: bool = False,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.max_logprobs = max_logprobs
        self.allows_priority = allows_priority
        self.sampling_defaults = _checked_defaults(generation_defaults or {})
        known = dict.fromkeys([*tokenizer.eos_token_ids, *eos_token_ids])
        self.eos_token_ids = tuple(token_id for token_id in known if 0 <= token_id < vocab_size)
        self._valid_ids = list[Annotated[int, msgspec.Meta(ge=0, lt=vocab_size)]]
        self._template_problem = template_problem
        self._random = random.Random(seed)
        self._clock = clock

    def default_sampling_params(self) -> SamplingParams:
        """Parameters for callers that give none: the model's own defaults."""
        return SamplingParams(**self.sampling_defaults)

    def process(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str,
        priority: int = 0,
        arrival_time: float | None = None,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
        output_kind: RequestOutputKind | None = None,
    ) -> ProcessedInput:
        """Makes a request.

        The texts of control tokens in a prompt are read as control tokens: who writes a whole prompt also writes
        its template. Text from users goes through `encode_chat`.

        Args:
            prompt: Text, token ids or an object.
            params: How to continue; default is `default_sampling_params`.
            request_id: Unique among the running requests.
            priority: Lower runs first under the priority policy.
            arrival_time: Seconds on the host's monotonic clock; default is now.
            cache_salt: Shares cached prefixes only with equal salts; a prompt's own `cache_salt` goes first.
            add_special_tokens: Put bos in front where the model is used to it.
            output_kind: Goes before that of `params`, for callers that read in one way only.

        Raises:
            PromptTooLongError: The prompt leaves no room for an answer.
            ParameterError: A parameter that does not fit the model.
            InvalidRequestError: A prompt that is empty or malformed.
        """
        if not 0 < len(request_id) <= MAX_REQUEST_ID_CHARACTERS:
            raise ParameterError("request_id", f"a string of 1 to {MAX_REQUEST_ID_CHARACTERS} characters", request_id)
        if priority and not self.allows_priority:
            raise ParameterError("priority", "0 with the fcfs policy", priority, hint="--scheduling-policy priority")
        text, token_ids, own_salt = self._read_prompt(prompt, add_special_tokens)
        self._check_prompt(token_ids)
        resolved = self._resolve(params or self.default_sampling_params(), len(token_ids), output_kind)
        request = GenerationRequest(
            request_id=RequestId(request_id),
            prompt_token_ids=token_ids,
            sampling=_engine_params(resolved),
            eos_token_ids=() if resolved.ignore_eos else self.eos_token_ids,
            bad_words_token_ids=self._bad_words(resolved.bad_words),
            priority=priority,
            arrival_time=self._clock() if arrival_time is None else arrival_time,
            cache_salt=_check_salt(own_salt if own_salt is not None else cache_salt),
            grammar=self._grammar(resolved),
        )
        return ProcessedInput(request=request, prompt=text, params=resolved)

    def _grammar(self, params: SamplingParams) -> str:
        structured = params.structured_outputs
        return "" if structured is None else lower(structured, self.tokenizer.special_tokens)

    def encode_chat(self, messages: Any, *, template: ChatTemplate | None = None, **options: Any) -> ChatPrompt:
        """A chat as a prompt for `process`. Options as for `ChatTemplate.encode`; may take its time limit.

        Args:
            messages: Objects with role and content.
            template: Instead of the model's own.
            **options: `add_generation_prompt`, `continue_final_message`, `tools`, `documents`, `variables`.

        Raises:
            InvalidRequestError: No chat template, or messages that do not fit it.
        """
        template = template or self.template
        if template is None:
            raise InvalidRequestError(
                self._template_problem,
                hint="give one with --chat-template, or send a whole prompt to /v1/completions",
            )
        return template.encode(messages, self.tokenizer, **options)

    def _read_prompt(self, prompt: Prompt, add_special_tokens: bool) -> tuple[str | None, list[int], str | None]:
        """Text, token ids and cache salt of a prompt in any of its forms."""
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens), None
        if not isinstance(prompt, Mapping):
            return None, _read_token_ids(prompt, "prompt"), None
        given = {key: value for key, value in prompt.items() if value is not None}
        unknown = next((key for key in given if key not in _PROMPT_KEYS), None)
        if unknown is not None:
            hint = f"its fields are {', '.join(sorted(_PROMPT_KEYS))}"
            raise InvalidRequestError(f"a prompt has no field {unknown!r}", hint=hint, param=str(unknown))
        text, salt = given.get("prompt"), given.get("cache_salt")
        if text is not None and not isinstance(text, str):
            raise ParameterError("prompt", "a string", text)
        if "prompt_token_ids" in given:
            return text, _read_token_ids(given["prompt_token_ids"], "prompt_token_ids"), salt
        if text is None:
            raise InvalidRequestError("a prompt needs the field prompt or prompt_token_ids", param="prompt")
        return text, self.tokenizer.encode(text, add_special_tokens=add_special_tokens), salt

    def _check_prompt(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", hint="give at least one token", param="prompt")
        if len(token_ids) >= self.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(token_ids)} tokens; with an answer of at least one token the limit of "
                f"{self.max_model_len} tokens allows {self.max_model_len - 1}",
                hint="shorten the prompt, or start with a larger --max-model-len if the model can do it",
                param="prompt",
            )
        if not _fits(token_ids, self._valid_ids):
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < self.vocab_size)
            raise ParameterError("prompt", f"made of token ids below the vocabulary's size {self.vocab_size}", wrong)

    def _resolve(
        self, params: SamplingParams, num_prompt_tokens: int, output_kind: RequestOutputKind | None
    ) -> SamplingParams:
        """Parameters with `max_tokens` and `seed` filled in, checked against the model."""
        self._check_token_sets(params)
        self._check_logprobs(params)
        room = self.max_model_len - num_prompt_tokens
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        if params.min_tokens > max_tokens:
            raise ParameterError("min_tokens", f"at most max_tokens={max_tokens}", params.min_tokens)
        seed = self._random.getrandbits(_SEED_BITS) if params.seed is None else params.seed
        return params.completed(max_tokens=max_tokens, seed=seed, output_kind=output_kind or params.output_kind)

    def _check_token_sets(self, params: SamplingParams) -> None:
        rule = f"made of token ids below the vocabulary's size {self.vocab_size}"
        for name in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            for token_id in getattr(params, name) or ():
                if token_id >= self.vocab_size:
                    raise ParameterError(name, rule, token_id)

    def _check_logprobs(self, params: SamplingParams) -> None:
        if self.max_logprobs == -1:
            return
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(params, name)
            if value is not None and (self.vocab_size if value == -1 else value) > self.max_logprobs:
                raise ParameterError(
                    name,
                    f"at most max_logprobs={self.max_logprobs}",
                    value,
                    hint="start with a larger --max-logprobs; -1 is no limit",
                )

    def _bad_words(self, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """Each word as tokens, at the beginning of a text and behind a space."""
        sequences: dict[tuple[int, ...], None] = {}
        for word in words:
            bare = word.lstrip()
            for text in (bare, " " + bare) if bare else (word,):
                sequences[tuple(self.tokenizer.encode(text, add_special_tokens=False))] = None
        sequences.pop((), None)
        num_tokens = sum(map(len, sequences))
        if num_tokens > MAX_BAD_WORD_TOKENS:
            raise ParameterError("bad_words", f"at most {MAX_BAD_WORD_TOKENS} tokens together", num_tokens)
        return tuple(sequences)


def create_input_processor(
    config: ModelConfig,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    info: EngineInfo,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> InputProcessor:
    """The input processor for a model that an engine has loaded.

    Raises:
        ConfigError: The model's generation defaults cannot be used, or the chat template that the user gave.
    """
    template, problem = None, "the model has no chat template"
    if checkpoint.chat_template is not None:
        template, problem = _load_template(config, checkpoint.chat_template, tokenizer)
    return InputProcessor(
        tokenizer,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        template=template,
        template_problem=problem,
        generation_defaults=checkpoint.generation_defaults,
        eos_token_ids=checkpoint.architecture.eos_token_ids,
        max_logprobs=config.max_logprobs,
        allows_priority=info.scheduling_policy == "priority",
        seed=config.seed,
        clock=clock,
    )


def _checked_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    try:
        SamplingParams(**defaults)
    except ParameterError as error:
        raise ConfigError(
            f"the model's generation_config.json: {error.message}",
            hint="start with --generation-config quire to leave it aside",
            param="generation_config",
        ) from error
    return dict(defaults)


def _load_template(config: ModelConfig, text: str, tokenizer: Tokenizer) -> tuple[ChatTemplate | None, str]:
    """The template, or why there is none. One that the user gave must compile; a model can do without its own."""
    try:
        return ChatTemplate(text, named_tokens=tokenizer.named_tokens), ""
    except ConfigError as error:
        if config.chat_template is not None:
            raise
        logger.warning("chats are refused, %s", error.message)
        return None, error.message


def _read_token_ids(value: Any, name: str) -> list[int]:
    if isinstance(value, bytes | bytearray) or not isinstance(value, Sequence):
        raise ParameterError(name, "a string, a list of token ids or an object", value)
    token_ids = list(value)
    if not _fits(token_ids, list[int]):
        raise ParameterError(name, "a list of integers", value)
    return token_ids


def _fits(token_ids: list[Any], kind: Any) -> bool:
    """Whether all are of a kind. Looking at them one by one in Python would take longer than all else."""
    try:
        msgspec.convert(token_ids, kind)
    except msgspec.ValidationError:
        return False
    return True


def _engine_params(params: SamplingParams) -> SamplingParams:
    """What the engine is to do: choosing the best answers needs their log-probabilities."""
    changes: dict[str, Any] = {}
    if params.num_samples > params.n and params.logprobs is None:
        changes["logprobs"] = 0
    if params.structured_outputs is not None:
        # It goes as the request's grammar.
        changes["structured_outputs"] = None
    return params.with_changes(**changes) if changes else params


def _check_salt(salt: Any) -> str:
    if salt is None:
        return ""
    allowed = isinstance(salt, str) and 0 < len(salt) <= MAX_CACHE_SALT_CHARACTERS
    if not allowed or any(character in salt for character in "@/\\\0"):
        rule = f"a string of 1 to {MAX_CACHE_SALT_CHARACTERS} characters without @ / \\ or NUL"
        raise ParameterError("cache_salt", rule, salt)
    return str(salt)
