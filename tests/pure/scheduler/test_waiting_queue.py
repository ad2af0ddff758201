from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire.scheduler.queue import WaitingQueue
from quire.scheduler.sequence import SampleGroup, Sequence
from quire.testing.traces import make_request
from quire.types.ids import SequenceId


def make_sequence(number: int, priority: int = 0) -> Sequence:
    request = make_request(str(number), [1])
    return Sequence(
        request, 0, sequence_id=SequenceId(number), rank=(priority, number), group=SampleGroup(), max_model_len=100
    )


class QueueMachine(RuleBasedStateMachine):
    """The heap against a sorted list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue()
        self.twin: list[Sequence] = []
        self.popped: list[Sequence] = []
        self.number = 0

    @rule(priority=st.integers(-2, 2))
    def push(self, priority: int) -> None:
        self.number += 1
        sequence = make_sequence(self.number, priority)
        self.queue.push(sequence)
        self.twin.append(sequence)

    @precondition(lambda self: self.popped)
    @rule()
    def put_back(self) -> None:
        sequence = self.popped.pop()
        self.queue.push(sequence)
        self.twin.append(sequence)

    @precondition(lambda self: self.twin)
    @rule()
    def pop(self) -> None:
        first = min(self.twin, key=lambda sequence: sequence.rank)
        assert self.queue.pop() is first
        self.twin.remove(first)
        self.popped.append(first)

    @precondition(lambda self: self.twin)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        sequence = self.twin.pop(data.draw(st.integers(0, len(self.twin) - 1)))
        self.queue.drop(sequence)

    @invariant()
    def agree(self) -> None:
        self.queue.check_invariants()
        assert len(self.queue) == len(self.twin)
        assert set(self.queue) == set(self.twin)
        assert self.queue.peek() is min(self.twin, key=lambda sequence: sequence.rank, default=None)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=15, deadline=None)


def test_dropped_sequences_do_not_pile_up_behind_one_that_stays():
    queue = WaitingQueue()
    queue.push(make_sequence(0))
    for number in range(1, 1000):
        sequence = make_sequence(number)
        queue.push(sequence)
        queue.drop(sequence)
    assert len(queue) == 1
    assert len(queue._heap) < 5
