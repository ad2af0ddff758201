"""A line per request, finished or refused: whose, what, how many tokens, how long, and how it ended.

Nothing in a line lets a client write another one: as JSON and as text, all but plain words is escaped.
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from quire.entrypoints.http.served_request import ServedRequest, totals_of
from quire.entrypoints.log_format import FIELDS

logger = logging.getLogger("quire.requests")

MAX_ERROR_CHARACTERS = 300
_PLAIN = re.compile(r"[\w./:{}@+-]+", re.ASCII)


class RequestLog:
    """Writes the line of every request at INFO.

    Args:
        log_prompts: Whether lines show prompts.
        max_log_len: Characters shown of the prompts of a request.
    """

    def __init__(self, *, log_prompts: bool = False, max_log_len: int = 1000) -> None:
        self._log_prompts = log_prompts
        self._max_log_len = max_log_len

    def on_request(self, served: ServedRequest) -> None:
        """Writes its line."""
        if not logger.isEnabledFor(logging.INFO):
            return
        fields = describe_request(served)
        if self._log_prompts and served.generations:
            fields["prompt"] = _prompts(served, self._max_log_len)
        logger.info("%s", _Line(fields), extra={FIELDS: fields})


class _Line:
    """The fields as text, made only if the log is text."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return " ".join(f"{name}={_word(value)}" for name, value in self._fields.items())


def describe_request(served: ServedRequest) -> dict[str, Any]:
    """The fields of a request's line; what does not apply to it is left out. Times are in seconds."""
    fields: dict[str, Any] = {
        "request_id": served.request_id,
        "key": served.key_name,
        "method": served.method,
        "route": served.route,
        "status": served.final_status,
        "total_seconds": _rounded(served.end - served.begin),
        "client_left": served.client_left or None,
        "error": _clean(served.error_text)[:MAX_ERROR_CHARACTERS],
    }
    if served.generations:
        totals = totals_of(served)
        fields |= {
            "model": served.model,
            "answer_id": _clean(served.answer_id),
            "prompt_tokens": totals.num_prompt_tokens,
            "cached_tokens": totals.num_cached_tokens,
            "output_tokens": totals.num_output_tokens,
            "queue_seconds": _rounded(totals.queue_seconds),
            "first_token_seconds": _rounded(totals.first_token_seconds),
            "preemptions": totals.num_preemptions,
            "finish_reasons": list(totals.finish_reasons),
        }
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _prompts(served: ServedRequest, max_characters: int) -> str:
    """The prompts one after the other, ids for those that were given as ids, cut to `max_characters`."""
    shown = ""
    for state in served.generations:
        text = state.prompt
        if text is None:
            text = " ".join(map(str, state.request.prompt_token_ids[:max_characters]))
        shown += text[: max_characters - len(shown)]
        if len(shown) >= max_characters:
            break
    return _clean(shown)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which not every reader of JSON takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _word(value: Any) -> str:
    """A value in a line of text: as it is if nobody can mistake it, as JSON otherwise."""
    if isinstance(value, list):
        return ",".join(_word(part) for part in value)
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
