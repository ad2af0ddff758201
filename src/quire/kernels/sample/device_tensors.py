"""What the sampler keeps on a GPU, and what it is told there about a step."""

from dataclasses import dataclass

import torch

NOT_FINITE = -1
"""In place of a token: the row holds NaN or +inf."""
EXHAUSTED = -2
"""In place of a token: all of the row is -inf."""
PROMPT_FLAG = 1 << 30
"""In a row of token counts: the token stands in the prompt. The bits below count it in the answer."""

_MAX_CHUNK = 2048
_MIN_CHUNK = 128
_TYPICAL_CHUNKS = 96


def chunk_size(vocab_size: int) -> int:
    """Tokens whose logits are summed together. Of the vocabulary alone, so that a row is always summed the same way."""
    wanted = -(-vocab_size // _TYPICAL_CHUNKS)
    return min(_MAX_CHUNK, max(_MIN_CHUNK, 1 << (wanted - 1).bit_length()))


@dataclass(slots=True)
class DeviceSamplingParams:
    """Parameters by slot, [max_num_seqs + 1] each; the last slot belongs to rows that are padding, and is greedy.

    Attributes:
        temperature: float32; 0 takes the most likely token.
        top_k: int32; 0 or at least the vocabulary keeps all.
        top_p, min_p: float32.
        seed: int64.
        sample_index: int32.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    sample_index: torch.Tensor

    @classmethod
    def make(cls, max_num_seqs: int, device: torch.device) -> "DeviceSamplingParams":
        """All slots greedy."""
        size = max_num_seqs + 1
        return cls(
            temperature=torch.zeros(size, dtype=torch.float32, device=device),
            top_k=torch.zeros(size, dtype=torch.int32, device=device),
            top_p=torch.ones(size, dtype=torch.float32, device=device),
            min_p=torch.zeros(size, dtype=torch.float32, device=device),
            seed=torch.zeros(size, dtype=torch.int64, device=device),
            sample_index=torch.zeros(size, dtype=torch.int32, device=device),
        )


@dataclass(slots=True)
class DrawWorkspace:
    """Scratch of `draw` for up to R rows of C chunks each; what it holds means nothing between two draws.

    Attributes:
        peaks: [R, C] float32; the chunk's largest logit, +inf where it holds NaN.
        peak_ids: [R, C] int32; the first token that has it, in rows that are greedy.
        sums: [R, C] float32; sum of the weights relative to the chunk's peak, in rows that are not.
        kept_ties: [R, C] int32; how many tokens just at the cut are kept, first ids first.
        cuts: [R] float32; the least logit that is kept, -inf for all.
        chunk_lists: [R, C] int32; chunks that matter.
    """

    peaks: torch.Tensor
    peak_ids: torch.Tensor
    sums: torch.Tensor
    kept_ties: torch.Tensor
    cuts: torch.Tensor
    chunk_lists: torch.Tensor

    @classmethod
    def make(cls, max_num_rows: int, vocab_size: int, device: torch.device) -> "DrawWorkspace":
        """For batches of up to `max_num_rows` rows."""
        chunk = chunk_size(vocab_size)
        table = (max_num_rows, -(-vocab_size // chunk))
        return cls(
            peaks=torch.empty(table, dtype=torch.float32, device=device),
            peak_ids=torch.empty(table, dtype=torch.int32, device=device),
            sums=torch.empty(table, dtype=torch.float32, device=device),
            kept_ties=torch.empty(table, dtype=torch.int32, device=device),
            cuts=torch.empty(max_num_rows, dtype=torch.float32, device=device),
            chunk_lists=torch.empty(table, dtype=torch.int32, device=device),
        )

    @property
    def max_num_rows(self) -> int:
        """R."""
        return self.cuts.shape[0]


@dataclass(slots=True)
class DeviceEdits:
    """Changes to single logits, on the device; arrays of length 0 where there is none of a kind.

    Attributes:
        restricted_rows: [R] int32; rows in which only allowed tokens remain.
        allowed_rows, allowed_ids: [A] int32; the tokens allowed in them, a pair occurs once.
        excluded_rows, excluded_ids: [E] int32; tokens that cannot be drawn.
        bias_rows, bias_ids: [B] int32, a pair occurs once.
        biases: [B] float32, added to the logits.
    """

    restricted_rows: torch.Tensor
    allowed_rows: torch.Tensor
    allowed_ids: torch.Tensor
    excluded_rows: torch.Tensor
    excluded_ids: torch.Tensor
    bias_rows: torch.Tensor
    bias_ids: torch.Tensor
    biases: torch.Tensor


@dataclass(slots=True)
class DeviceMask:
    """Tokens that M rows may draw, on the device.

    Attributes:
        rows: [M] int32, none twice.
        words: [M, ceil(V / 32)] int32: token t is allowed if bit t % 32 of word t // 32 is set.
    """

    rows: torch.Tensor
    words: torch.Tensor


@dataclass(slots=True)
class DevicePenalties:
    """Rows that penalise tokens which have occurred, P of them, on the device.

    Attributes:
        rows: [P] int32.
        count_addresses: [P] int64; where the row's counts [V] int32 stand, see `PROMPT_FLAG`.
        repetition, frequency, presence: [P] float32.
    """

    rows: torch.Tensor
    count_addresses: torch.Tensor
    repetition: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor


@dataclass(slots=True)
class DeviceBadWords:
    """Sequences of tokens that must not be completed, W of them, on the device.

    The tokens of a row's answer stand in a ring: that of index i at place i modulo the ring's size.

    Attributes:
        entries: [7, W] int64: row, last token of the word, address of its other tokens (int32), how many these are
            (at most the ring's size), address of the row's ring (int32), its size, tokens in the answer so far.
    """

    entries: torch.Tensor
