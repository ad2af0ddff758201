"""The prompt of a completion: text, token ids, or a list of either."""

from typing import Any

from quire.errors import InvalidRequestError, ParameterError

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
