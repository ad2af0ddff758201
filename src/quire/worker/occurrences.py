"""Which tokens have occurred in a sequence: what penalties look at."""

import numpy as np


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
