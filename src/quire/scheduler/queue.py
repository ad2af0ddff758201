"""Sequences that wait for a slot."""

import heapq
from collections.abc import Iterator
from itertools import count

from quire.scheduler.sequence import Sequence
from quire.scheduler.tenant import Tenant
from quire.types.ids import SequenceId

MAX_REMEMBERED_TENANTS = 1024

Turn = tuple[int, float, int]
"""Priority, service of the tenant, arrival."""


class WaitingQueue:
    """Sequences in the order of service: by priority, then fairly between tenants, then by arrival.

    Priority is 0 under fcfs, so a tenant alone is served in the order of arrival. A preempted sequence keeps its
    rank and stands again before all of its tenant that arrived after it.

    Between tenants the one with the least service goes first. A tenant that had nothing waiting takes up the
    service at which the queue stands, less a credit: what it did not use while it idled is lost beyond that.

    Each tenant has a lane, a heap by rank; another heap holds the lanes by their turn. A turn only moves back as
    its tenant is served, so it is brought up to date when it surfaces; where it moves forward, a new entry is made
    and the old one is dead.

    Args:
        idle_credit: Tokens that a tenant which was idle may be served before the others, times its weight.
    """

    def __init__(self, idle_credit: int = 0) -> None:
        self._idle_credit = idle_credit
        self._lanes: dict[str, Lane] = {}
        self._turns: list[tuple[Turn, int, Lane]] = []
        self._serials = count(1)
        self._virtual_time = 0.0
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        """In no particular order."""
        return (sequence for lane in self._lanes.values() for sequence in lane)

    def tenant(self, name: str, weight: float = 1.0) -> Tenant:
        """The tenant of a name; its weight is the last that was told."""
        lane = self._lanes.get(name)
        if lane is None:
            if len(self._lanes) >= MAX_REMEMBERED_TENANTS:
                self._forget_idle()
            lane = self._lanes[name] = Lane(Tenant(name))
        lane.tenant.weight = weight
        return lane.tenant

    def tenants(self) -> Iterator[Tenant]:
        """All that are known, whether they wait for anything or not."""
        return (lane.tenant for lane in self._lanes.values())

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence that is not in the queue; its tenant comes from `tenant`. O(log n)."""
        tenant = sequence.tenant
        lane = self._lanes[tenant.name]
        if not len(lane):
            tenant.service = max(tenant.service, self._virtual_time - self._idle_credit)
        lane.push(sequence)
        self._num_waiting += 1
        if lane.turn is None or turn_of(sequence) < lane.turn:
            self._enter_turn(lane, turn_of(sequence))

    def peek(self) -> Sequence | None:
        """The sequence whose turn it is; None if the queue is empty. Amortised O(log n)."""
        turns = self._turns
        while turns:
            entered, serial, lane = turns[0]
            head = lane.peek() if serial == lane.serial else None
            if head is None:
                heapq.heappop(turns)
                if serial == lane.serial:
                    lane.turn = None
                continue
            turn = turn_of(head)
            if turn == entered:
                return head
            heapq.heappop(turns)
            self._enter_turn(lane, turn)
        return None

    def pop(self) -> Sequence:
        """Takes out the sequence whose turn it is. The queue must not be empty. Amortised O(log n)."""
        sequence = self.peek()
        assert sequence is not None, "pop from an empty queue"
        self._lanes[sequence.tenant.name].pop()
        self._num_waiting -= 1
        self._virtual_time = max(self._virtual_time, sequence.tenant.service)
        return sequence

    def drop(self, sequence: Sequence) -> None:
        """Takes out a sequence that is in the queue, wherever it stands, for good. Amortised O(1)."""
        self._lanes[sequence.tenant.name].drop(sequence)
        self._num_waiting -= 1

    def check_invariants(self) -> None:
        """Asserts that every lane is in order and has its turn."""
        assert self._num_waiting == sum(len(lane) for lane in self._lanes.values()), "waiting sequences are miscounted"
        live = {id(lane): turn for turn, serial, lane in self._turns if serial == lane.serial}
        for name, lane in self._lanes.items():
            lane.check_invariants()
            assert lane.tenant.name == name, "a lane under another name"
            head = lane.peek()
            if head is not None:
                assert id(lane) in live, "a lane without a turn"
                assert live[id(lane)] <= turn_of(head), "a lane would be looked at too late"

    def _enter_turn(self, lane: "Lane", turn: Turn) -> None:
        lane.turn, lane.serial = turn, next(self._serials)
        heapq.heappush(self._turns, (turn, lane.serial, lane))

    def _forget_idle(self) -> None:
        busy = {name: lane for name, lane in self._lanes.items() if len(lane) or lane.tenant.num_running}
        kept = set(map(id, busy.values()))
        self._lanes = busy
        self._turns = [entry for entry in self._turns if id(entry[2]) in kept]
        heapq.heapify(self._turns)


def turn_of(sequence: Sequence) -> Turn:
    """Where a sequence stands among those of all tenants, smaller first."""
    priority, arrival = sequence.rank
    return priority, sequence.tenant.service, arrival


class Lane:
    """The waiting sequences of one tenant: a heap by `rank`.

    A deque would need a search to put a preempted sequence back into its place, and another to drop one from the
    middle; here a dropped one stays in the heap until it surfaces or until the dropped ones are the majority.

    Attributes:
        turn: With which it stands among the lanes; None if it does not.
        serial: Of that entry.
    """

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.turn: Turn | None = None
        self.serial = 0
        self._heap: list[tuple[tuple[int, int], SequenceId, Sequence]] = []
        self._dropped: set[SequenceId] = set()

    def __len__(self) -> int:
        return len(self._heap) - len(self._dropped)

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, sequence_id, sequence in self._heap if sequence_id not in self._dropped)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence."""
        heapq.heappush(self._heap, (sequence.rank, sequence.sequence_id, sequence))

    def peek(self) -> Sequence | None:
        """The first."""
        heap, dropped = self._heap, self._dropped
        while heap and heap[0][1] in dropped:
            dropped.remove(heapq.heappop(heap)[1])
        return heap[0][2] if heap else None

    def pop(self) -> None:
        """Takes out the one that `peek` returned."""
        heapq.heappop(self._heap)

    def drop(self, sequence: Sequence) -> None:
        """Takes one out, wherever it stands."""
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
