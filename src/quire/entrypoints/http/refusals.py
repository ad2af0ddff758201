"""Fields that would shape the answer and that a request's model does not declare.

A request that relies on one is refused, never half obeyed: what we know and have not built, names of earlier versions
and of other servers, and misspelt names of our own. Every other unknown field passes unread.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequestError

MAX_UNKNOWN_FIELDS = 128
MAX_NAME_CHARACTERS = 64
"""Longer names are no misspelling of anything."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a field is refused.

    Attributes:
        harmless: Values that ask for nothing, and therefore pass. None always passes.
    """

    hint: str
    harmless: tuple[Any, ...] = ()


def _structured(kind: str) -> Refusal:
    return Refusal(f'it is structured_outputs={{"{kind}": ...}} now')


_STRUCTURED = Refusal("use response_format or structured_outputs")
_MEDIA = Refusal("the model takes and produces text only", ({},))
_TOOLS = Refusal("describe the functions in tools, and use tool_choice", ([],))
_INTERNAL = Refusal("this server does not have the part that would act on it", ({}, False))
_BEAMS = "it belongs to beam search, which this server does not have"
_LENGTH = Refusal("use max_tokens or max_completion_tokens")

COMMON: Mapping[str, Refusal] = {
    "guided_json": _structured("json"),
    "guided_regex": _structured("regex"),
    "guided_choice": _structured("choice"),
    "guided_grammar": _structured("grammar"),
    "guided_whitespace_pattern": _structured("whitespace_pattern"),
    "guided_decoding_backend": Refusal("leave it out: there is one backend; use structured_outputs", ("auto",)),
    "guided_decoding": _STRUCTURED,
    "json_schema": _STRUCTURED,
    "grammar": _structured("grammar"),
    "regex": _structured("regex"),
    "max_new_tokens": _LENGTH,
    "max_output_tokens": _LENGTH,
    "stop_sequences": Refusal("use stop"),
    "use_beam_search": Refusal("use best_of with a temperature", (False,)),
    "length_penalty": Refusal(_BEAMS, (1, 1.0)),
    "early_stopping": Refusal(_BEAMS, (False,)),
    "logprob_token_ids": Refusal("ask for the most likely tokens with logprobs"),
    "return_token_offsets": Refusal("leave it out", (False,)),
    "prompt_embeds": Refusal("send text or token ids"),
    "logits_processors": Refusal("use logit_bias, allowed_token_ids or bad_words", ([],)),
    "repetition_detection": Refusal("use repetition_penalty or frequency_penalty"),
    "kv_transfer_params": _INTERNAL,
    "ec_transfer_params": _INTERNAL,
    "vllm_xargs": _INTERNAL,
    "watermarking": _INTERNAL,
    "return_weight_versions": _INTERNAL,
    "routed_experts_prompt_start": _INTERNAL,
    "mm_processor_kwargs": _MEDIA,
}

CHAT: Mapping[str, Refusal] = {
    **COMMON,
    "functions": _TOOLS,
    "function_call": Refusal(_TOOLS.hint, ("none",)),
    "modalities": Refusal(_MEDIA.hint, ([], ["text"])),
    "audio": _MEDIA,
    "media_io_kwargs": _MEDIA,
    "mm_payload": _MEDIA,
    "web_search_options": Refusal("this server does not search the web"),
    "verbosity": Refusal("ask for it in the prompt", ("medium",)),
    "moderation": Refusal("this server does not moderate"),
    "prompt": Refusal("send messages here, or the prompt to /v1/completions"),
}

COMPLETION: Mapping[str, Refusal] = {
    **COMMON,
    "suffix": Refusal("this server does not fill in the middle", ("",)),
    "messages": Refusal("send messages to /v1/chat/completions, or a prompt here"),
}

_SHAPES_THE_ANSWER = (
    *("response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls", "stop"),
    *("stop_token_ids", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p"),
    *("logit_bias", "bad_words", "allowed_token_ids", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "reasoning_effort", "thinking_token_budget", "chat_template_kwargs"),
)
"""Names whose misspellings are refused. Only those that the request's model declares count."""


def refuse_unknown(fields: Mapping[str, Any], refusals: Mapping[str, Refusal], declared: Collection[str]) -> None:
    """Checks the fields of a request that its model does not declare.

    Args:
        fields: Names and values.
        refusals: What is refused by name.
        declared: The names that the model does declare.

    Raises:
        InvalidRequestError: One of them would have shaped the answer, or they are too many.
    """
    if len(fields) > MAX_UNKNOWN_FIELDS:
        raise InvalidRequestError(f"the body has {len(fields)} unknown fields, more than {MAX_UNKNOWN_FIELDS}")
    shaping = tuple(name for name in _SHAPES_THE_ANSWER if name in declared)
    for name, value in fields.items():
        if value is None:
            continue
        refusal = refusals.get(name)
        if refusal is None:
            meant = nearest_name(name, shaping) if len(name) <= MAX_NAME_CHARACTERS else None
            if meant is not None:
                raise InvalidRequestError(
                    f"there is no field {name!r}", hint=f"did you mean {meant}?", param=name[:128]
                )
        elif not any(_same(value, harmless) for harmless in refusal.harmless):
            raise InvalidRequestError(f"{name} is not supported", hint=refusal.hint, param=name)


@functools.lru_cache(maxsize=1024)
def nearest_name(name: str, known: tuple[str, ...]) -> str | None:
    """The known name that `name` is a misspelling of: other case, other separators, or a letter or two amiss."""
    letters = _letters(name)
    if not letters:
        return None
    for candidate in known:
        other = _letters(candidate)
        if letters == other:
            return candidate
        allowed = 2 if len(other) > 9 else 1 if len(other) > 4 else 0
        if abs(len(letters) - len(other)) > allowed:
            continue
        # An edit changes at most two of the letters that occur: most names need no closer look.
        if len(set(letters) ^ set(other)) <= 2 * allowed and _edit_distance(letters, other) <= allowed:
            return candidate
    return None


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _edit_distance(left: str, right: str) -> int:
    """Letters to insert, drop, replace, or swap with their neighbour."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, previous, row = row, before, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, previous[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _same(value: Any, harmless: Any) -> bool:
    return type(value) is type(harmless) and bool(value == harmless)
