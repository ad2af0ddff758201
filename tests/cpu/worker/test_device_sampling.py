import math
import random

import numpy as np
import pytest
import torch

from quire.errors import RequestFailedError
from quire.kernels.sample import pick_logprobs, reference
from quire.kernels.sample.device import EXHAUSTED
from quire.types.ids import SequenceId, SlotIndex
from quire.types.plan import NewSequence
from quire.types.sampling import SamplingParams
from quire.worker.device_sampling import DeviceSampling
from quire.worker.prompt_logprobs import PromptSpan, launch_span, score_span, to_positions

VOCAB_SIZE = 37
NUM_SLOTS = 6
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_sampling():
    return DeviceSampling(max_num_seqs=NUM_SLOTS, vocab_size=VOCAB_SIZE, device=DEVICE)


def new_sequence(slot, prompt, *, outputs=(), sample_index=0, seed=0, bad_words=(), **parameters):
    return NewSequence(
        sequence_id=SequenceId(100 + slot),
        slot=SlotIndex(slot),
        token_ids=[*prompt, *outputs],
        num_prompt_tokens=len(prompt),
        num_computed_tokens=0,
        block_ids=[],
        sampling=SamplingParams(**{"max_tokens": None, **parameters}),
        seed=seed,
        sample_index=sample_index,
        stop_token_ids=frozenset(parameters.get("stop_token_ids", ())),
        bad_words_token_ids=tuple(bad_words),
    )


class Steps:
    """Draws step by step on the device, and what the reference would do with the same logits."""

    def __init__(self):
        self.sampling = make_sampling()
        self.last_tokens = torch.full((NUM_SLOTS + 1,), -77, dtype=torch.int32, device=DEVICE)
        self.sequences = {}
        self.produced = {}

    def enter(self, new):
        self.sampling.leave(new.slot)
        self.sampling.enter(new)
        self.sequences[new.slot] = new
        self.produced[new.slot] = list(new.token_ids[new.num_prompt_tokens :])

    def leave(self, slot):
        self.sampling.leave(slot)
        del self.sequences[slot]

    def run(self, logits, slots, *, is_eager=True):
        """Draws for `slots` from logits [N, V]. The host passes no token, only how many there are."""
        self.sampling.flush()
        num_produced = np.array([len(self.produced[slot]) for slot in slots], np.int64)
        num_prompt = np.array([self.sequences[slot].num_prompt_tokens for slot in slots], np.int64)
        token_ids = torch.full((len(slots),), -77, dtype=torch.int32, device=DEVICE)
        slots_on_device = torch.tensor(slots, dtype=torch.int32, device=DEVICE)
        positions = torch.tensor(num_prompt + num_produced, dtype=torch.int32, device=DEVICE)
        logits = logits.to(DEVICE, copy=True)
        pending = None
        if is_eager:
            pending = self.sampling.draw_eager(
                logits,
                np.array(slots, np.int64),
                num_produced,
                slots_on_device,
                positions,
                token_ids,
                self.last_tokens,
            )
        else:
            self.sampling.draw(logits, slots_on_device, positions, token_ids, self.last_tokens)
        drawn = token_ids.tolist()
        for slot, token_id in zip(slots, drawn, strict=True):
            self.produced[slot].append(token_id)
        return drawn, pending

    def expected(self, values, slot):
        """The reference's token from raw logits [V]."""
        new, outputs = self.sequences[slot], self.produced[slot]
        sampling = new.sampling
        excluded = set(new.stop_token_ids) if len(outputs) < sampling.min_tokens else set()
        for *before, last in new.bad_words_token_ids:
            if not before or outputs[-len(before) :] == before:
                excluded.add(last)
        values = reference.edit_logits(
            values,
            allowed=sampling.allowed_token_ids,
            excluded=excluded,
            bias=sampling.logit_bias,
            prompt_ids=new.token_ids[: new.num_prompt_tokens],
            output_ids=outputs,
            repetition=sampling.repetition_penalty,
            frequency=sampling.frequency_penalty,
            presence=sampling.presence_penalty,
        )
        if sampling.temperature == 0.0:
            return values.index(max(values))
        probabilities = reference.kept_probabilities(
            values,
            temperature=sampling.temperature,
            top_k=max(0, sampling.top_k),
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )
        position = new.num_prompt_tokens + len(outputs)
        return reference.draw(probabilities, reference.uniform(new.seed, new.sample_index, position))


BAD_WORDS = tuple((first, second) for first in range(0, VOCAB_SIZE, 2) for second in range(0, VOCAB_SIZE, 3))

MIXES = [
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.3},
    {"temperature": 1.0, "min_p": 0.05, "frequency_penalty": 0.7, "presence_penalty": -0.5, "logprobs": 2},
    {"temperature": 0.0, "presence_penalty": 2.0, "logit_bias": {4: 3.0, 5: -100.0}},
    {"temperature": 1.0, "allowed_token_ids": [1, 2, 3, 4, 30], "min_tokens": 3, "stop_token_ids": [30, 2]},
    {"temperature": 0.0, "repetition_penalty": 2.0, "min_tokens": 5, "stop_token_ids": [11]},
    {"temperature": 2.0},
    {"temperature": 1.0, "bad_words": ((3,), (7, 8), (1, 2, 3))},
    {"temperature": 1.5, "bad_words": BAD_WORDS, "logprobs": 0},
    {"temperature": 0.0},
    {"temperature": 1.0, "logprobs": 5, "top_p": 0.9},
]


@pytest.mark.parametrize("seed", range(4))
def test_sequences_that_come_and_go_draw_as_the_reference(seed):
    rng = random.Random(seed)
    steps = Steps()
    generator = torch.Generator().manual_seed(seed)
    for number in range(7):
        for slot in rng.sample(range(NUM_SLOTS), 2):
            prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 6))]
            outputs = [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice([0, 0, 3]))]
            mix = MIXES[(number * 2 + slot + seed * 3) % len(MIXES)]
            steps.enter(new_sequence(slot, prompt, outputs=outputs, seed=rng.randrange(2**40) - 2**39, **mix))
        slots = rng.sample(list(steps.sequences), rng.randint(1, len(steps.sequences)))
        logits = torch.randn(len(slots), VOCAB_SIZE, generator=generator) * 2
        expected = [steps.expected(values, slot) for values, slot in zip(logits.tolist(), slots, strict=True)]
        asked = {row for row, slot in enumerate(slots) if steps.sequences[slot].sampling.logprobs is not None}
        drawn, pending = steps.run(logits, slots)
        assert drawn == expected
        assert [steps.last_tokens[slot].item() for slot in slots] == drawn
        found = pending.read() if pending else {}
        assert found.keys() == asked
        for row, positions in found.items():
            assert_logprobs(positions, logits[row], drawn[row], steps.sequences[slots[row]].sampling.logprobs)


def assert_logprobs(positions, logits, token_id, num_top):
    """Equal to the CPU's, of the logits before anything was done to them."""
    picked = pick_logprobs(torch.log_softmax(logits[None], -1), np.array([token_id]), num_top)
    (expected,) = to_positions(picked)
    assert positions.token_ids == expected.token_ids
    assert positions.ranks == expected.ranks
    assert positions.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_plain_slots_need_no_eager_step():
    steps = Steps()
    steps.enter(new_sequence(0, [1], temperature=0.5, top_k=3, top_p=0.9, min_p=0.1))
    steps.enter(new_sequence(1, [1], temperature=0.0, prompt_logprobs=2))
    steps.enter(new_sequence(2, [1], logprobs=0))
    steps.enter(new_sequence(3, [1], repetition_penalty=1.1))
    steps.enter(new_sequence(4, [1], bad_words=((3,),)))
    needs = [steps.sampling.needs_eager(np.array([slot])) for slot in range(5)]
    assert needs == [False, False, True, True, True]
    assert not steps.sampling.needs_eager(np.array([0, 1]))
    assert steps.sampling.needs_eager(np.array([0, 3, 1]))
    assert steps.sampling.num_prompt_logprobs == {1: 2}
    logits = torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    expected = [steps.expected(values, slot) for values, slot in zip(logits.tolist(), (1, 0), strict=True)]
    assert steps.run(logits, [1, 0], is_eager=False)[0] == expected


def test_min_tokens_are_over_when_they_are_produced():
    steps = Steps()
    steps.enter(new_sequence(2, [1, 2], temperature=0.0, min_tokens=3, stop_token_ids=[5]))
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 5], logits[0, 6] = 2.0, 1.0
    needs = []
    for _ in range(4):
        needs.append(steps.sampling.needs_eager(np.array([2])))
        steps.run(logits, [2])
    assert steps.produced[2] == [6, 6, 6, 5]
    assert needs == [True, True, True, False]


def test_a_row_without_a_token_left_fails_alone():
    steps = Steps()
    steps.enter(new_sequence(0, [1], temperature=1.0, allowed_token_ids=[7], bad_words=((7,),), logprobs=1))
    steps.enter(new_sequence(1, [1], temperature=0.0, logprobs=1, frequency_penalty=1.0))
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[1, 9] = 1.0
    drawn, pending = steps.run(logits, [0, 1])
    assert drawn == [EXHAUSTED, 9]
    assert steps.last_tokens[:2].tolist() == [0, 9]
    assert pending.read()[1].token_ids == [9, 9]


def test_a_slot_starts_afresh():
    """Counts, bad words and edits of the sequence before do not reach the next one."""
    steps = Steps()
    options = {"presence_penalty": 2.0, "logit_bias": {3: 50.0}, "bad_words": ((8, 9),)}
    steps.enter(new_sequence(1, [9] * 5, temperature=0.0, **options))
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 9] = 1.0
    steps.run(logits, [1])
    steps.enter(new_sequence(1, [8], temperature=0.0, presence_penalty=0.5))
    assert steps.run(logits, [1])[0] == [9]
    assert steps.run(logits, [1])[0] == [9]
    steps.enter(new_sequence(1, [8], temperature=0.0))
    assert not steps.sampling.needs_eager(np.array([1]))
    assert steps.run(logits, [1])[0] == [9]


def test_nothing_is_sent_where_nobody_has_come(monkeypatch):
    steps = Steps()
    steps.enter(new_sequence(0, [1], temperature=0.0))
    steps.enter(new_sequence(1, [1], temperature=0.0))
    uploads = []
    upload = steps.sampling._arrivals_staging.upload
    monkeypatch.setattr(
        steps.sampling._arrivals_staging, "upload", lambda arrays: uploads.append(len(arrays)) or upload(arrays)
    )
    for _ in range(3):
        steps.run(torch.zeros(2, VOCAB_SIZE), [0, 1])
    steps.leave(0)
    steps.run(torch.zeros(1, VOCAB_SIZE), [1])
    assert uploads == [1]


@pytest.mark.parametrize(
    "parameters",
    [{"allowed_token_ids": [VOCAB_SIZE]}, {"logit_bias": {VOCAB_SIZE: 1.0}}, {"bad_words": ((1, VOCAB_SIZE),)}],
    ids=str,
)
def test_ids_outside_the_vocabulary_are_refused(parameters):
    sampling = make_sampling()
    with pytest.raises(RequestFailedError, match=str(VOCAB_SIZE)):
        sampling.enter(new_sequence(0, [1], **parameters))
    sampling.leave(0)
    sampling.flush()
    assert not sampling.needs_eager(np.array([0]))


def test_tables_of_counts_fit_into_what_was_announced():
    steps = Steps()
    for slot in range(NUM_SLOTS):
        steps.enter(new_sequence(slot, [1], repetition_penalty=1.1))
    steps.sampling.flush()
    counts = steps.sampling._counts
    taken = {counts.row(slot).untyped_storage().data_ptr() for slot in range(NUM_SLOTS)}
    sizes = {counts.row(slot).untyped_storage().nbytes() for slot in range(NUM_SLOTS)}
    assert len(taken) * max(sizes) <= counts.max_bytes() < steps.sampling.max_bytes()


def test_a_top_k_of_any_size_is_understood():
    steps = Steps()
    steps.enter(new_sequence(0, [1], temperature=0.5, top_k=2**40))
    steps.enter(new_sequence(1, [1], temperature=0.5, top_k=-1))
    logits = torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    expected = [steps.expected(values, slot) for slot, values in enumerate(logits.tolist())]
    assert steps.run(logits, [0, 1])[0] == expected


def launch_and_read(span, hidden):
    pending = launch_span(span, hidden.to(DEVICE), torch.clone, VOCAB_SIZE)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return pending.read()


@pytest.mark.parametrize("num_top", [0, 3])
def test_prompt_logprobs_equal_the_cpus(monkeypatch, num_top):
    monkeypatch.setattr("quire.worker.prompt_logprobs._SLICE_NUM_BYTES", 4 * VOCAB_SIZE * 2)
    hidden = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 2
    span = PromptSpan(SlotIndex(0), SequenceId(1), np.arange(5), np.array([3, 36, 0, 7, 7]), num_top)
    expected = score_span(span, hidden, torch.clone, VOCAB_SIZE)
    found = launch_and_read(span, hidden)
    assert [entry.token_ids for entry in found] == [entry.token_ids for entry in expected]
    assert [entry.ranks for entry in found] == [entry.ranks for entry in expected]
    for entry, wanted in zip(found, expected, strict=True):
        assert entry.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
    hidden[3, 3] = math.nan
    assert launch_and_read(span, hidden) is None
