from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire.scheduler.queue import WaitingQueue
from quire.scheduler.sequence import SampleGroup, Sequence
from quire.testing.traces import make_request
from quire.types.ids import SequenceId


def make_sequence(queue: WaitingQueue, number: int, priority: int = 0, tenant: str = "", weight: float = 1) -> Sequence:
    return Sequence(
        make_request(str(number), [1]),
        0,
        sequence_id=SequenceId(number),
        rank=(priority, number),
        group=SampleGroup(),
        max_model_len=100,
        tenant=queue.tenant(tenant, weight),
    )


def turn(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.rank[0], sequence.tenant.service, sequence.rank[1]


class QueueMachine(RuleBasedStateMachine):
    """The heaps against a list that is searched."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue(idle_credit=7)
        self.twin: list[Sequence] = []
        self.popped: list[Sequence] = []
        self.number = 0

    @rule(priority=st.integers(-2, 2), tenant=st.sampled_from("abc"), weight=st.sampled_from([0.5, 1, 3]))
    def push(self, priority: int, tenant: str, weight: float) -> None:
        self.number += 1
        sequence = make_sequence(self.queue, self.number, priority, tenant, weight)
        self.queue.push(sequence)
        self.twin.append(sequence)

    @precondition(lambda self: self.popped)
    @rule()
    def put_back(self) -> None:
        sequence = self.popped.pop()
        self.queue.push(sequence)
        self.twin.append(sequence)

    @precondition(lambda self: self.twin or self.popped)
    @rule(data=st.data(), num_tokens=st.integers(1, 30))
    def serve(self, data: st.DataObject, num_tokens: int) -> None:
        """Somebody is served, whether it waits for more or not."""
        data.draw(st.sampled_from(self.twin + self.popped)).tenant.charge(num_tokens)

    @precondition(lambda self: self.twin)
    @rule()
    def pop(self) -> None:
        first = min(self.twin, key=turn)
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
        assert self.queue.peek() is min(self.twin, key=turn, default=None)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=15, deadline=None)


def test_dropped_sequences_do_not_pile_up_behind_one_that_stays():
    queue = WaitingQueue()
    queue.push(make_sequence(queue, 0))
    for number in range(1, 1000):
        sequence = make_sequence(queue, number)
        queue.push(sequence)
        queue.drop(sequence)
    assert len(queue) == 1
    assert len(queue._lanes[""]._heap) < 5


def test_a_tenant_alone_is_served_in_the_order_of_arrival():
    queue = WaitingQueue()
    sequences = [make_sequence(queue, number) for number in range(20)]
    for sequence in reversed(sequences):
        queue.push(sequence)
    served = []
    while queue:
        served.append(queue.pop())
        served[-1].tenant.charge(100)
    assert served == sequences


def served_names(queue: WaitingQueue, count: int, num_tokens: int = 10) -> str:
    names = ""
    for _ in range(count):
        sequence = queue.pop()
        sequence.tenant.charge(num_tokens)
        names += sequence.tenant.name
    return names


def test_tenants_are_served_by_weight():
    queue = WaitingQueue()
    for number in range(60):
        queue.push(make_sequence(queue, number, tenant="a", weight=2))
        queue.push(make_sequence(queue, 100 + number, tenant="b", weight=1))
    names = served_names(queue, 30)
    assert names.count("a") == 20
    assert "bb" not in names


def test_who_comes_later_does_not_wait_for_those_who_came_in_numbers():
    queue = WaitingQueue()
    for number in range(100):
        queue.push(make_sequence(queue, number, tenant="a"))
    served_names(queue, 50)
    queue.push(make_sequence(queue, 200, tenant="b"))
    assert "b" in served_names(queue, 2)


def test_idling_earns_a_credit_and_no_more():
    queue = WaitingQueue(idle_credit=30)
    for number in range(200):
        queue.push(make_sequence(queue, number, tenant="a"))
    served_names(queue, 100)
    for number in range(300, 400):
        queue.push(make_sequence(queue, number, tenant="b"))
    names = served_names(queue, 20)
    lead = max(names[:length].count("b") - names[:length].count("a") for length in range(20))
    assert 3 <= lead <= 4


def test_priority_goes_before_fairness():
    queue = WaitingQueue()
    queue.push(make_sequence(queue, 1, priority=0, tenant="a"))
    queue.push(make_sequence(queue, 2, priority=1, tenant="b"))
    queue.push(make_sequence(queue, 3, priority=0, tenant="a"))
    assert served_names(queue, 3, num_tokens=1000) == "aab"


def test_tenants_that_left_are_forgotten(monkeypatch):
    monkeypatch.setattr("quire.scheduler.queue.MAX_REMEMBERED_TENANTS", 8)
    queue = WaitingQueue()
    queue.push(make_sequence(queue, 0, tenant="stays"))
    for number in range(1, 100):
        sequence = make_sequence(queue, number, tenant=f"t{number}")
        queue.push(sequence)
        queue.drop(sequence)
        queue.check_invariants()
    assert len(queue._lanes) <= 8
    assert queue.pop().tenant.name == "stays"
