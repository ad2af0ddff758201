"""What the sampler is told about a batch: plain arrays on the host."""

from dataclasses import dataclass, field

import numpy as np

TOP_P_ROUNDING = 1.0 - 1e-6
"""A set reaches top_p when it holds this fraction of it: 0.5 + 0.25 reach 0.75, however they were rounded."""


@dataclass(slots=True)
class LogitEdits:
    """Changes to single logits; E excluded entries, B biases. Rows need not be sorted.

    Attributes:
        allowed: (row, token ids [A] int64): every other token of the row is excluded.
        excluded_rows, excluded_ids: [E] int64 each; these tokens cannot be drawn.
        bias_rows, bias_ids: [B] int64 each, a pair occurs once.
        biases: [B] float32, added to the logits.
    """

    allowed: list[tuple[int, np.ndarray]] = field(default_factory=list)
    excluded_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    excluded_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    bias_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    bias_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    biases: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass(slots=True)
class TokenMask:
    """Tokens that M rows may draw: all others are excluded.

    Attributes:
        rows: [M] int64, none twice.
        words: [M, ceil(V / 32)] uint32: token t is allowed if bit t % 32 of word t // 32 is set.
    """

    rows: np.ndarray
    words: np.ndarray


@dataclass(slots=True)
class Penalties:
    """Tokens that have occurred in rows that penalise them; P entries, a (row, token) pair occurs once.

    Attributes:
        rows, token_ids: [P] int64; the token stands in the row's prompt or answer.
        output_counts: [P] int64; how often it stands in the answer, 0 for prompt only.
        repetition, frequency, presence: [P] float32; the row's penalties, repeated for each entry.
    """

    rows: np.ndarray
    token_ids: np.ndarray
    output_counts: np.ndarray
    repetition: np.ndarray
    frequency: np.ndarray
    presence: np.ndarray


@dataclass(slots=True)
class SamplingBatch:
    """How each of N rows is drawn.

    Attributes:
        temperature: [N] float64; 0 takes the most likely token, of equal ones the lowest id.
        top_k: [N] int64; 0 keeps all. Tokens as likely as the last one kept are kept too.
        top_p: [N] float64; keeps the smallest set, most likely first, whose share of what is left reaches it.
        min_p: [N] float64; drops tokens less likely than this fraction of the most likely one.
        seed, sample_index, position: [N] int64; name the random number of the row.
        edits, penalties, mask: None where no row has any.
    """

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    seed: np.ndarray
    sample_index: np.ndarray
    position: np.ndarray
    edits: LogitEdits | None = None
    penalties: Penalties | None = None
    mask: TokenMask | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.temperature)
