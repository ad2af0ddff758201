"""The prompt of a completion: text, token ids, or a list of either."""

import asyncio
from typing import Any

from quire.errors import InvalidRequestError, ParameterError
from quire.frontend.async_engine import LONG_PROMPT_CHARACTERS
from quire.frontend.tokenizer import Tokenizer

MAX_PROMPTS = 1024
MAX_ANSWERS = 4096
"""Prompts times samples that one request may run."""

_RULE = "a string, a list of token ids, or a list of these"


def split_prompts(prompt: Any) -> list[str | list[int]]:
    """The prompts of a request, each a text or token ids.

    Raises:
        ParameterError: Naming the prompt at fault.
    """
    if prompt is None:
        raise InvalidRequestError("prompt is missing", param="prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise ParameterError("prompt", _RULE + ", and not empty", prompt)
    if type(prompt[0]) is int:
        return [_token_ids(prompt, "prompt")]
    if len(prompt) > MAX_PROMPTS:
        raise ParameterError("prompt", f"a list of at most {MAX_PROMPTS} prompts", len(prompt))
    return [_one_prompt(entry, f"prompt[{index}]") for index, entry in enumerate(prompt)]


def _one_prompt(prompt: Any, path: str) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise ParameterError(path, "a string or a list of token ids, and not empty", prompt)
    return _token_ids(prompt, path)


def _token_ids(ids: list[Any], path: str) -> list[int]:
    for index, token_id in enumerate(ids):
        if type(token_id) is not int or not 0 <= token_id < 2**31:
            raise ParameterError(f"{path}[{index}]", "a token id", token_id)
    return ids


def check_number_of_answers(num_prompts: int, num_samples: int) -> None:
    """Bounds what one request may start.

    Raises:
        InvalidRequestError: Prompts times samples are too many.
    """
    if num_prompts * num_samples > MAX_ANSWERS:
        raise InvalidRequestError(
            f"{num_prompts} prompts with {num_samples} samples each are more than {MAX_ANSWERS} answers",
            hint="send several requests",
            param="n",
        )


def truncate_prompt(
    token_ids: list[int], num_kept: int | None, side: str, *, max_model_len: int, max_tokens: int | None
) -> list[int]:
    """The tokens of a prompt that a request wants to keep.

    Args:
        token_ids: All of them.
        num_kept: How many to keep at most; -1 for as many as leave room for the answer, None for all.
        side: "left" or "right": where tokens are cut off.
        max_model_len: Prompt and answer together, in tokens.
        max_tokens: Tokens of the answer; None leaves room for one.

    Raises:
        ParameterError: `num_kept` is 0, or leaves no room for an answer.
    """
    if num_kept is None:
        return token_ids
    longest = max_model_len - 1
    if num_kept == 0 or num_kept > longest:
        raise ParameterError("truncate_prompt_tokens", f"-1 or between 1 and {longest}", num_kept)
    room = max(1, max_model_len - (max_tokens or 1))
    limit = room if num_kept == -1 else num_kept
    return token_ids[-limit:] if side == "left" else token_ids[:limit]


async def encode_text(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The tokens of a prompt; long ones are tokenised in a thread, so that they do not delay the streams of others.

    Raises:
        InvalidRequestError: A text that is not valid Unicode.
    """
    if len(text) <= LONG_PROMPT_CHARACTERS:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
