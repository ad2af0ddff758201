"""Sequences that wait for a slot."""

import heapq
from collections.abc import Iterator

from quire.scheduler.sequence import Sequence
from quire.types.ids import SequenceId


class WaitingQueue:
    """A heap of sequences by `rank`.

    One structure serves both policies: a rank is (priority, arrival number), with priority 0 under fcfs. It is
    kept across preemptions, so a preempted sequence stands again before all that arrived after it. A deque would
    need a search to put it there, and another to drop a sequence from the middle; here a dropped one stays in the
    heap until it surfaces or until the dropped ones are the majority.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], SequenceId, Sequence]] = []
        self._dropped: set[SequenceId] = set()

    def __len__(self) -> int:
        return len(self._heap) - len(self._dropped)

    def __iter__(self) -> Iterator[Sequence]:
        """In no particular order."""
        return (sequence for _, sequence_id, sequence in self._heap if sequence_id not in self._dropped)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence that is not in the queue. O(log n)."""
        heapq.heappush(self._heap, (sequence.rank, sequence.sequence_id, sequence))

    def peek(self) -> Sequence | None:
        """The sequence whose turn it is; None if the queue is empty. Amortised O(log n)."""
        heap, dropped = self._heap, self._dropped
        while heap and heap[0][1] in dropped:
            dropped.remove(heapq.heappop(heap)[1])
        return heap[0][2] if heap else None

    def pop(self) -> Sequence:
        """Takes out the sequence whose turn it is. The queue must not be empty. Amortised O(log n)."""
        sequence = self.peek()
        assert sequence is not None, "pop from an empty queue"
        heapq.heappop(self._heap)
        return sequence

    def drop(self, sequence: Sequence) -> None:
        """Takes out a sequence that is in the queue, wherever it stands, for good. Amortised O(1)."""
        self._dropped.add(sequence.sequence_id)
        if 2 * len(self._dropped) > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[1] not in self._dropped]
            heapq.heapify(self._heap)
            self._dropped.clear()

    def check_invariants(self) -> None:
        """Asserts that dropped entries exist and no entry stands twice."""
        ids = [sequence_id for _, sequence_id, _ in self._heap]
        assert len(ids) == len(set(ids)), "a sequence waits twice"
        assert self._dropped <= set(ids), "a dropped sequence is not in the heap"
