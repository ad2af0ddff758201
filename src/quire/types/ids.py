"""Distinct types for the integers and strings that must not mix."""

from typing import NewType

RequestId = NewType("RequestId", str)
"""Names a request from the front end to the engine and back."""

SequenceId = NewType("SequenceId", int)
"""One sample of one request, numbered by the scheduler; never used twice in a process."""

SlotIndex = NewType("SlotIndex", int)
"""A row of the worker's persistent batch state, below `max_num_seqs`; reused."""

BlockId = NewType("BlockId", int)
"""A block of the KV cache, below `num_blocks`."""
