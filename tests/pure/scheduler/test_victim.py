from quire.scheduler.sequence import SampleGroup, Sequence
from quire.scheduler.victim import choose_victim
from quire.testing.traces import make_request
from quire.types.ids import SequenceId, SlotIndex


def running(number: int, *, computed: int, reused: int = 0, priority: int = 0) -> Sequence:
    sequence = Sequence(
        make_request(str(number), [1]),
        0,
        sequence_id=SequenceId(number),
        rank=(priority, number),
        group=SampleGroup(),
        max_model_len=100,
    )
    sequence.slot = SlotIndex(number)
    sequence.num_computed_tokens, sequence.num_reused_tokens = computed, reused
    return sequence


def test_one_sequence_alone_has_no_victim():
    assert choose_victim([running(1, computed=5)]) is None
    waiting = running(2, computed=0)
    waiting.slot = None
    assert choose_victim([running(1, computed=5), waiting]) is None


def test_the_first_in_rank_is_never_chosen():
    first, second = running(1, computed=1), running(2, computed=1000)
    assert choose_victim([second, first]) is second


def test_the_one_that_loses_least_work_gives_way():
    sequences = [running(1, computed=0), running(2, computed=300), running(3, computed=20), running(4, computed=50)]
    assert choose_victim(sequences) is sequences[2]


def test_work_that_the_cache_keeps_is_not_lost():
    sequences = [running(1, computed=0), running(2, computed=300, reused=290), running(3, computed=20)]
    assert choose_victim(sequences) is sequences[1]


def test_the_worst_priority_comes_before_the_least_work():
    sequences = [running(1, computed=0), running(2, computed=5, priority=1), running(3, computed=900, priority=2)]
    assert choose_victim(sequences) is sequences[2]


def test_the_last_to_arrive_gives_way_among_equals():
    sequences = [running(number, computed=10) for number in (2, 1, 4, 3)]
    assert choose_victim(sequences) is sequences[2]
