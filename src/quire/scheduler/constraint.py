"""What a grammar says about a sample, as the scheduler sees it. The engine implements it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from quire.types.plan import TokenMasks


class Constraint(Protocol):
    """What one sample may still produce.

    Attributes:
        is_complete: Whether the answer is whole: nothing can follow.
        ended_by_eos: Whether it is whole because end-of-sequence was drawn, which is no part of the text.
        error: Why the sample cannot go on; None while it can.
    """

    is_complete: bool
    ended_by_eos: bool
    error: str | None

    def advance(self, token_id: int) -> str | None:
        """Takes in the token that was drawn; called once per token, in order. Returns why the sample cannot go on."""


MakeMasks = Callable[[Sequence[tuple[int, Constraint]]], TokenMasks]
"""Promises the masks of a step, given the constrained rows of its plan."""
