"""Fields that we know and have not built: a request that relies on one is refused, never half obeyed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a field is refused.

    Attributes:
        harmless: Values that ask for nothing, and therefore pass. None always passes.
    """

    hint: str
    harmless: tuple[Any, ...] = ()


_TOOLS = Refusal("this server does not call tools yet; describe them in the prompt instead", ([],))
_STRUCTURED = Refusal("this server does not constrain its output yet; ask for the format in the prompt")
_MEDIA = Refusal("the model takes and produces text only", ({},))
_TEMPLATE = Refusal("the model's own chat template is used; pass its variables in chat_template_kwargs")
_REASONING = Refusal("pass the template's own switch in chat_template_kwargs, for example {'enable_thinking': false}")
_INTERNAL = Refusal("this server does not have the part that would act on it", ({}, False))

_COMMON = {
    "structured_outputs": _STRUCTURED,
    "guided_json": _STRUCTURED,
    "guided_regex": _STRUCTURED,
    "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED,
    "guided_decoding_backend": _STRUCTURED,
    "guided_whitespace_pattern": _STRUCTURED,
    "response_format": Refusal(_STRUCTURED.hint, ({"type": "text"},)),
    "use_beam_search": Refusal("use best_of with a temperature", (False,)),
    "length_penalty": Refusal("it belongs to beam search, which this server does not have", (1, 1.0)),
    "early_stopping": Refusal("it belongs to beam search, which this server does not have", (False,)),
    "truncate_prompt_tokens": Refusal("shorten the prompt before you send it"),
    "logprob_token_ids": Refusal("ask for the most likely tokens with logprobs"),
    "return_token_offsets": Refusal("leave it out", (False,)),
    "prompt_embeds": Refusal("send text or token ids"),
    "logits_processors": Refusal("use logit_bias, allowed_token_ids or bad_words", ([],)),
    "stream_interval": Refusal("every token is sent when it is there", (1,)),
    "repetition_detection": Refusal("use repetition_penalty or frequency_penalty"),
    "kv_transfer_params": _INTERNAL,
    "ec_transfer_params": _INTERNAL,
    "vllm_xargs": _INTERNAL,
    "watermarking": _INTERNAL,
    "return_weight_versions": _INTERNAL,
    "routed_experts_prompt_start": _INTERNAL,
    "mm_processor_kwargs": _MEDIA,
    "store": Refusal("answers are not stored", (False,)),
}

CHAT = _COMMON | {
    "tools": _TOOLS,
    "tool_choice": Refusal(_TOOLS.hint, ("none",)),
    "functions": _TOOLS,
    "function_call": Refusal(_TOOLS.hint, ("none",)),
    "modalities": Refusal(_MEDIA.hint, ([], ["text"])),
    "audio": _MEDIA,
    "media_io_kwargs": _MEDIA,
    "mm_payload": _MEDIA,
    "web_search_options": Refusal("this server does not search the web"),
    "chat_template": _TEMPLATE,
    "documents": Refusal(_TEMPLATE.hint, ([],)),
    "reasoning_effort": _REASONING,
    "include_reasoning": Refusal("reasoning is not parsed; it is part of the content", (True,)),
    "thinking_token_budget": Refusal("use max_completion_tokens", (-1,)),
    "verbosity": Refusal("ask for it in the prompt", ("medium",)),
    "moderation": Refusal("this server does not moderate"),
    "echo": Refusal("the last message is not repeated in the answer", (False,)),
    "add_special_tokens": Refusal("the chat template writes the special tokens", (False,)),
}

COMPLETION = _COMMON | {
    "suffix": Refusal("this server does not fill in the middle", ("",)),
}


def refuse_unbuilt(fields: Mapping[str, Any], refusals: Mapping[str, Refusal]) -> None:
    """Checks the fields of a request that its model does not declare.

    Raises:
        InvalidRequestError: One of them asks for something that is not built.
    """
    for name in fields.keys() & refusals.keys():
        value, refusal = fields[name], refusals[name]
        if value is not None and not any(_same(value, harmless) for harmless in refusal.harmless):
            raise InvalidRequestError(f"{name} is not supported", hint=refusal.hint, param=name)


def _same(value: Any, harmless: Any) -> bool:
    return type(value) is type(harmless) and bool(value == harmless)
