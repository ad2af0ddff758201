"""What one rendering of a template may use, and the size of an operation before it runs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2.utils import Namespace

from quire.errors import InvalidRequestError
from quire.frontend.control_tokens import ControlTokens

MAX_ITEMS = 100_000
MAX_MEASURED_ITEMS = 500_000
MAX_INTEGER_BITS = 256
MAX_FIELD_CHARACTERS = 9999
MAX_INDENT = 200

_REWRITING = frozenset(["replace", "lower", "upper", "title", "capitalize", "swapcase", "casefold"])
_SPLITTING = frozenset(["split", "rsplit", "splitlines", "partition", "rpartition"])
_WIDE_PERCENT_FIELD = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})")
_WIDE_BRACE_FIELD = re.compile(r"\{[^{}]*(?:\{|\d{5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLimits:
    """What a template may use.

    Attributes:
        template_characters: Length of the template itself.
        output_characters: Length of what it writes, and of any string on the way.
        work_characters: Characters that all its operations produce together.
        seconds: Time for one rendering.
    """

    template_characters: int = 200_000
    output_characters: int = 8_000_000
    work_characters: int = 128_000_000
    seconds: float = 5.0


class RenderBudget:
    """What one rendering has used so far, and the control tokens that its users' strings must not form.

    Args:
        clock: Seconds, monotonic.
        control: A user's string in which one of these appears on the way is broken up again.
    """

    def __init__(self, limits: TemplateLimits, clock: Callable[[], float], control: ControlTokens) -> None:
        self._limits = limits
        self._clock = clock
        self._deadline = clock() + limits.seconds
        self._work = 0
        self._control = control

    def tick(self) -> None:
        """Looks at the clock.

        Raises:
            InvalidRequestError: The time is over.
        """
        if self._clock() > self._deadline:
            raise _refusal(f"took more than {self._limits.seconds:g} s")

    def spend(self, characters: int) -> None:
        """Counts characters that an operation produces, and looks at the clock.

        Raises:
            InvalidRequestError: They are too many, at once or together, or the time is over.
        """
        self.tick()
        self._work += characters
        if characters > self._limits.output_characters or self._work > self._limits.work_characters:
            raise _refusal(f"makes more than {self._limits.output_characters} characters of them")

    def measure(self, *values: Any) -> int:
        """Characters and items in `values`, counted as often as they would be written.

        Raises:
            InvalidRequestError: More than may be written.
        """
        size = num_items = 0
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            num_items += 1
            size += len(value) + 1 if isinstance(value, str) else 1
            if isinstance(value, list | tuple):
                waiting.extend(value)
            elif isinstance(value, Mapping):
                waiting.extend(value.keys())
                waiting.extend(value.values())
            elif isinstance(value, Namespace):
                raise _refusal("uses a namespace as a value")
            if num_items + len(waiting) > MAX_MEASURED_ITEMS or size > self._limits.output_characters:
                raise _refusal(f"makes more than {self._limits.output_characters} characters of them")
        return size

    def accept(self, name: str, result: Any, owner: Any) -> Any:
        """Counts the result of the operation `name` on `owner`, and keeps control tokens in it broken.

        A string that loses a piece in the middle, or changes its case, may become a control token that it was
        not before. One that was split may end in the beginning of one.
        """
        if isinstance(result, str):
            self.spend(len(result))
            if name in _REWRITING and self._control.occur_in(result) and not self._control.occur_in(str(owner)):
                return self._control.break_up(result)
        elif isinstance(result, list | tuple):
            self.spend(len(result))
            if name in _SPLITTING:
                return [self._control.break_end(piece) for piece in result]
        return result


def _refusal(problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the chat template {problem} with these messages",
        hint="send less, or serve the model with another --chat-template",
    )


def operation_size(budget: RenderBudget, operator: str, left: Any, right: Any) -> int:
    """Characters or items that a binary operation makes.

    Raises:
        InvalidRequestError: Numbers or lists that grow too large, or a format with wide fields.
    """
    if operator == "%" and isinstance(left, str):
        _check_percent_format(budget, left, right)
        return 0
    if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        return _bounded_length(left, len(left) + len(right))
    for sequence, times in ((left, right), (right, left)):
        if operator == "*" and isinstance(sequence, str | list | tuple) and isinstance(times, int):
            return _bounded_length(sequence, len(sequence) * max(0, times))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(1, abs(right)) if operator == "**" else 1) + right.bit_length()
        if bits > MAX_INTEGER_BITS:
            raise _refusal(f"computes with numbers of more than {MAX_INTEGER_BITS} bits")
    return 1


def _bounded_length(sequence: Any, length: int) -> int:
    if not isinstance(sequence, str) and length > MAX_ITEMS:
        raise _refusal(f"makes a list of more than {MAX_ITEMS} items")
    return length


def _check_replace(budget: RenderBudget, text: Any, old: Any, new: Any, count: Any = None) -> None:
    text = str(text)
    budget.spend(len(text) + text.count(str(old)) * len(str(new)))


def _check_join_method(budget: RenderBudget, separator: str, items: Any = ()) -> None:
    if not isinstance(items, str | list | tuple):
        raise _refusal("joins something that is not a list")
    budget.spend(budget.measure(items) + len(separator) * len(items))


def _check_join(budget: RenderBudget, items: Any, d: Any = "", attribute: Any = None) -> None:
    budget.spend(len(str(d)) * len(items))


def _check_percent_format(budget: RenderBudget, pattern: Any, *args: Any, **kwargs: Any) -> None:
    pattern = str(pattern)
    if _WIDE_PERCENT_FIELD.search(pattern):
        raise _refusal(f"writes a field of more than {MAX_FIELD_CHARACTERS} characters")
    budget.spend(len(pattern) + pattern.count("%") * (budget.measure(args, kwargs) + MAX_FIELD_CHARACTERS))


def _check_brace_format(budget: RenderBudget, pattern: str, *args: Any, **kwargs: Any) -> None:
    if _WIDE_BRACE_FIELD.search(pattern.replace("{{", "").replace("}}", "")):
        raise _refusal(f"writes a field of more than {MAX_FIELD_CHARACTERS} characters")
    budget.spend(len(pattern) + pattern.count("{") * (budget.measure(args, kwargs) + MAX_FIELD_CHARACTERS))


def _check_indent(budget: RenderBudget, text: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:
    characters = len(width) if isinstance(width, str) else width
    if characters > MAX_INDENT:
        raise _refusal(f"indents by more than {MAX_INDENT} characters")
    budget.spend(len(str(text)) + (str(text).count("\n") + 1) * characters)


def _check_json(
    budget: RenderBudget,
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> None:
    widths = [indent or 0, *map(len, separators or ())]
    if any(not isinstance(width, int) or not 0 <= width <= MAX_INDENT for width in widths):
        raise _refusal(f"writes JSON with more than {MAX_INDENT} characters between values")


def _check_sum(budget: RenderBudget, items: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise _refusal("sums something that is not numbers")


METHOD_CHECKS: dict[str, Callable[..., None]] = {
    "replace": _check_replace,
    "join": _check_join_method,
    "format": _check_brace_format,
}
"""What is looked at before a method of a string is called."""

FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "replace": _check_replace,
    "join": _check_join,
    "format": _check_percent_format,
    "indent": _check_indent,
    "tojson": _check_json,
    "sum": _check_sum,
}
"""What is looked at before a filter is applied."""
