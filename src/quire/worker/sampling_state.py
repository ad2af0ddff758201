"""Sampling parameters by slot, kept between steps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from quire.errors import RequestFailedError
from quire.kernels.sample import LogitEdits, Penalties, SamplingBatch
from quire.types.plan import NewSequence
from quire.types.sampling import SamplingParams
from quire.worker.occurrences import TokenOccurrences


@dataclass(slots=True)
class SlotEdits:
    """What a slot changes in its logits.

    Attributes:
        allowed: Ids [A] int64, None for all.
        early_stops: Stop ids [E] int64, excluded until `min_tokens` are produced.
        bad_words: (tokens before, last token) of each sequence that must not be produced.
        bias_ids, biases: [B] int64 and [B] float32.
    """

    allowed: np.ndarray | None
    early_stops: np.ndarray
    min_tokens: int
    bad_words: tuple[tuple[tuple[int, ...], int], ...]
    bias_ids: np.ndarray
    biases: np.ndarray

    def is_over(self, num_produced: int) -> bool:
        """Whether nothing will be changed from the token of that index in the answer on."""
        return num_produced >= self.min_tokens and self.allowed is None and not (self.bad_words or len(self.bias_ids))


class SlotParameters:
    """What the sequences in the slots ask of the sampler, on whatever device it runs.

    Slots that use an unusual parameter stand in a dict of their own, so that batches without any pay nothing.

    Attributes:
        temperature, top_p, min_p: [max_num_seqs] float64.
        top_k, seed, sample_index: [max_num_seqs] int64; top_k 0 for all.
        edits: By slot, where there are any.
        num_logprobs, num_prompt_logprobs: By slot, where asked for; -1 stands for the whole vocabulary.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.temperature = np.zeros(max_num_seqs, np.float64)
        self.top_k = np.zeros(max_num_seqs, np.int64)
        self.top_p = np.ones(max_num_seqs, np.float64)
        self.min_p = np.zeros(max_num_seqs, np.float64)
        self.seed = np.zeros(max_num_seqs, np.int64)
        self.sample_index = np.zeros(max_num_seqs, np.int64)
        self.edits: dict[int, SlotEdits] = {}
        self.num_logprobs: dict[int, int] = {}
        self.num_prompt_logprobs: dict[int, int] = {}

    def enter(self, new: NewSequence) -> None:
        """Takes in the parameters of a sequence. Modifies its slot only.

        Raises:
            RequestFailedError: A token id outside the vocabulary.
        """
        slot, sampling = new.slot, new.sampling
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = max(0, sampling.top_k)
        self.top_p[slot] = sampling.top_p
        self.min_p[slot] = sampling.min_p
        self.seed[slot] = new.seed
        self.sample_index[slot] = new.sample_index
        if sampling.logprobs is not None:
            self.num_logprobs[slot] = sampling.logprobs
        if sampling.prompt_logprobs is not None:
            self.num_prompt_logprobs[slot] = sampling.prompt_logprobs
        if (edits := self._make_edits(new)) is not None:
            self.edits[slot] = edits

    def leave(self, slot: int) -> None:
        """Forgets a slot."""
        self.edits.pop(slot, None)
        self.num_logprobs.pop(slot, None)
        self.num_prompt_logprobs.pop(slot, None)

    def _make_edits(self, new: NewSequence) -> SlotEdits | None:
        sampling = new.sampling
        bias = sampling.logit_bias or {}
        # A stop token outside the vocabulary can never be drawn.
        early_stops = [token_id for token_id in new.stop_token_ids if 0 <= token_id < self._vocab_size]
        min_tokens = sampling.min_tokens if early_stops else 0
        if sampling.allowed_token_ids is None and not (bias or min_tokens or new.bad_words_token_ids):
            return None
        self._check_ids("allowed_token_ids", sampling.allowed_token_ids or ())
        self._check_ids("logit_bias", bias)
        for word in new.bad_words_token_ids:
            self._check_ids("bad_words", word)
        return SlotEdits(
            allowed=None if sampling.allowed_token_ids is None else np.array(sampling.allowed_token_ids, np.int64),
            early_stops=np.array(early_stops, np.int64),
            min_tokens=min_tokens,
            bad_words=tuple((tuple(word[:-1]), word[-1]) for word in new.bad_words_token_ids if word),
            bias_ids=np.array(list(bias.keys()), np.int64),
            biases=np.array(list(bias.values()), np.float32),
        )

    def _check_ids(self, name: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise RequestFailedError(f"{name} holds token {token_id}, the vocabulary has {self._vocab_size}")

    def collect_edits(
        self, slots: list[int], num_produced: list[int], find_bad_ids: Callable[[int, SlotEdits], np.ndarray]
    ) -> LogitEdits | None:
        """The changes to a step's logits.

        Args:
            slots: N slots, one per row.
            num_produced: Tokens in the answers of these slots.
            find_bad_ids: Tokens [E] int64 that would complete a bad word of a slot.
        """
        allowed, excluded, biased = [], [], []
        for row, slot in enumerate(slots):
            edits = self.edits.get(slot)
            if edits is None:
                continue
            if edits.allowed is not None:
                allowed.append((row, edits.allowed))
            if num_produced[row] < edits.min_tokens:
                excluded.append((row, edits.early_stops))
            if edits.bad_words:
                excluded.append((row, find_bad_ids(slot, edits)))
            if len(edits.bias_ids):
                biased.append((row, edits))
        if not (allowed or excluded or biased):
            return None
        return LogitEdits(
            allowed=allowed,
            excluded_rows=_repeat([(row, len(ids)) for row, ids in excluded]),
            excluded_ids=_join([ids for _, ids in excluded], np.int64),
            bias_rows=_repeat([(row, len(edits.bias_ids)) for row, edits in biased]),
            bias_ids=_join([edits.bias_ids for _, edits in biased], np.int64),
            biases=_join([edits.biases for _, edits in biased], np.float32),
        )


@dataclass(slots=True)
class _SlotPenalties:
    occurrences: TokenOccurrences
    repetition: float
    frequency: float
    presence: float


class SamplingState:
    """Sampling parameters of the sequences in the slots, for the sampler on the CPU.

    Attributes:
        num_logprobs, num_prompt_logprobs: By slot, where asked for; -1 stands for the whole vocabulary.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int) -> None:
        self._parameters = SlotParameters(max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        self._penalties: dict[int, _SlotPenalties] = {}
        self.num_logprobs = self._parameters.num_logprobs
        self.num_prompt_logprobs = self._parameters.num_prompt_logprobs

    def enter(self, new: NewSequence) -> None:
        """Takes in the parameters of a sequence. Modifies its slot only.

        Raises:
            RequestFailedError: A token id outside the vocabulary.
        """
        self._parameters.enter(new)
        sampling = new.sampling
        if has_penalties(sampling):
            self._penalties[new.slot] = _SlotPenalties(
                TokenOccurrences(np.array(new.token_ids, np.int64), new.num_prompt_tokens),
                sampling.repetition_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )

    def leave(self, slot: int) -> None:
        """Forgets a slot."""
        self._parameters.leave(slot)
        self._penalties.pop(slot, None)

    def append(self, slots: np.ndarray, token_ids: np.ndarray) -> None:
        """Counts the drawn tokens [N] of slots [N] for those that penalise them."""
        if not self._penalties:
            return
        for slot, token_id in zip(slots.tolist(), token_ids.tolist(), strict=True):
            if slot in self._penalties:
                self._penalties[slot].occurrences.append(token_id)

    def batch(
        self, slots: np.ndarray, token_ids: np.ndarray, num_prompt_tokens: np.ndarray, num_tokens: np.ndarray
    ) -> SamplingBatch:
        """How the next tokens are drawn.

        Args:
            slots: [N] int64.
            token_ids: [max_num_seqs, max_num_tokens] int32; the tokens of every slot.
            num_prompt_tokens: [max_num_seqs] int64; how many of them are the prompt.
            num_tokens: [max_num_seqs] int64; how many are known.
        """
        parameters = self._parameters

        def find_bad_ids(slot: int, edits: SlotEdits) -> np.ndarray:
            return _completing_tokens(edits.bad_words, token_ids[slot, num_prompt_tokens[slot] : num_tokens[slot]])

        edits, penalties = None, None
        if parameters.edits:
            num_produced = num_tokens[slots] - num_prompt_tokens[slots]
            edits = parameters.collect_edits(slots.tolist(), num_produced.tolist(), find_bad_ids)
        if self._penalties:
            penalties = self._batch_penalties(slots)
        return SamplingBatch(
            temperature=parameters.temperature[slots],
            top_k=parameters.top_k[slots],
            top_p=parameters.top_p[slots],
            min_p=parameters.min_p[slots],
            seed=parameters.seed[slots],
            sample_index=parameters.sample_index[slots],
            position=num_tokens[slots],
            edits=edits,
            penalties=penalties,
        )

    def _batch_penalties(self, slots: np.ndarray) -> Penalties | None:
        rows, entries = [], []
        for row, slot in enumerate(slots.tolist()):
            if slot in self._penalties:
                rows.append(row)
                entries.append(self._penalties[slot])
        if not rows:
            return None
        sizes = [len(entry.occurrences.token_ids) for entry in entries]
        return Penalties(
            rows=np.repeat(np.array(rows, np.int64), sizes),
            token_ids=np.concatenate([entry.occurrences.token_ids for entry in entries]),
            output_counts=np.concatenate([entry.occurrences.output_counts for entry in entries]),
            repetition=np.repeat(np.array([entry.repetition for entry in entries], np.float32), sizes),
            frequency=np.repeat(np.array([entry.frequency for entry in entries], np.float32), sizes),
            presence=np.repeat(np.array([entry.presence for entry in entries], np.float32), sizes),
        )


def has_penalties(sampling: SamplingParams) -> bool:
    """Whether tokens that have occurred are penalised."""
    return bool(sampling.repetition_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty)


def _completing_tokens(bad_words: tuple[tuple[tuple[int, ...], int], ...], outputs: np.ndarray) -> np.ndarray:
    """Tokens that would complete a bad word right after `outputs`."""
    longest = max(len(before) for before, _ in bad_words)
    tail = tuple(outputs[max(0, len(outputs) - longest) :].tolist())
    completing = [last for before, last in bad_words if tail[len(tail) - len(before) :] == before]
    return np.array(completing, np.int64)


def _repeat(rows_and_counts: list[tuple[int, int]]) -> np.ndarray:
    rows = np.array([row for row, _ in rows_and_counts], np.int64)
    return np.repeat(rows, [count for _, count in rows_and_counts])


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
