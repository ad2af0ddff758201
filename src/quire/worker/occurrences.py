"""Which tokens have occurred in a sequence: what penalties look at."""

import numpy as np
import torch

from quire.kernels.sample import device as sampler

_ROWS_PER_BLOCK = 16


class TokenOccurrences:
    """The distinct tokens of one sequence, and how often each stands in its answer.

    Grows by one token at a time in constant time, so that a penalty costs as much as there are distinct tokens.

    Args:
        token_ids: Prompt and answer so far.
        num_prompt_tokens: How many of them are the prompt.
    """

    __slots__ = ("_index_of", "_output_counts", "_size", "_token_ids")

    def __init__(self, token_ids: np.ndarray, num_prompt_tokens: int) -> None:
        distinct = np.unique(token_ids)
        self._size = len(distinct)
        self._token_ids = np.empty(self._size + 64, np.int64)
        self._token_ids[: self._size] = distinct
        self._output_counts = np.zeros(self._size + 64, np.int64)
        outputs, counts = np.unique(token_ids[num_prompt_tokens:], return_counts=True)
        self._output_counts[np.searchsorted(distinct, outputs)] = counts
        self._index_of = {token_id: index for index, token_id in enumerate(distinct.tolist())}

    @property
    def token_ids(self) -> np.ndarray:
        """Distinct tokens [D] int64; a view, valid until the next `append`."""
        return self._token_ids[: self._size]

    @property
    def output_counts(self) -> np.ndarray:
        """Occurrences of each in the answer, [D] int64, 0 for prompt only; a view like `token_ids`."""
        return self._output_counts[: self._size]

    def append(self, token_id: int) -> None:
        """Counts one more token of the answer."""
        index = self._index_of.get(token_id)
        if index is None:
            index = self._index_of[token_id] = self._size
            if index == len(self._token_ids):
                self._token_ids = np.concatenate((self._token_ids, np.empty_like(self._token_ids)))
                self._output_counts = np.concatenate((self._output_counts, np.zeros_like(self._output_counts)))
            self._token_ids[index] = token_id
            self._size += 1
        self._output_counts[index] += 1


class TokenCounts:
    """How often each token of the vocabulary stands in a sequence, on the device: [V] int32 per sequence.

    Tables, because the device counts the tokens that it draws before the host has seen them. They are allocated in
    blocks, when a sequence first needs one, and kept for the next one: a model with 150,000 tokens takes 0.6 MB each.

    Args:
        max_num_seqs: Slots.
        vocab_size: V.
        device: Where the tables go.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self._max_num_seqs = max_num_seqs
        self._vocab_size = vocab_size
        self._device = device
        self._row_of_slot: dict[int, torch.Tensor] = {}
        self._free_rows: list[torch.Tensor] = []

    def fill(self, slot: int, token_ids: torch.Tensor, num_prompt_tokens: int) -> None:
        """Gives the slot a table and counts its sequence, [T] int32 on the device: prompt, then answer so far."""
        row = self._row_of_slot.get(slot)
        if row is None:
            row = self._row_of_slot[slot] = self._take_row()
        sampler.count_tokens(row, token_ids, num_prompt_tokens)

    def leave(self, slot: int) -> None:
        """Takes the slot's table back, if it has one."""
        row = self._row_of_slot.pop(slot, None)
        if row is not None:
            # Launched steps may still read it; whoever gets it next overwrites it later in the same stream.
            self._free_rows.append(row)

    def row(self, slot: int) -> torch.Tensor:
        """The slot's table, [V] int32: see `PROMPT_FLAG`."""
        return self._row_of_slot[slot]

    def max_bytes(self) -> int:
        """Bytes of device memory when every slot has a table."""
        num_blocks = -(-self._max_num_seqs // _ROWS_PER_BLOCK)
        return num_blocks * _ROWS_PER_BLOCK * self._vocab_size * 4

    def _take_row(self) -> torch.Tensor:
        if not self._free_rows:
            shape = (_ROWS_PER_BLOCK, self._vocab_size)
            self._free_rows += torch.zeros(shape, dtype=torch.int32, device=self._device).unbind(0)
        return self._free_rows.pop()
