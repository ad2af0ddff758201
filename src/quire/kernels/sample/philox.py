"""Random numbers that are named, not drawn in turn: Philox4x32-10 of Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3" (2011). Equal names give equal numbers, in any order and in any batch.
"""

import numpy as np

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The block cipher itself.

    Args:
        counter: [4, N] uint64, each below 2**32.
        key: [2, N] uint64, each below 2**32.

    Returns:
        [4, N] uint64, each below 2**32.
    """
    even, odd = counter[0::2], counter[1::2]
    for _ in range(_ROUNDS):
        product = even * _MULTIPLIERS
        even = (product[::-1] >> _SHIFT_32) ^ odd ^ key
        odd = product[::-1] & _LOW_32
        key = (key + _KEY_STEPS) & _LOW_32
    return np.stack((even[0], odd[0], even[1], odd[1]))


def uniform(seed: np.ndarray, sample_index: np.ndarray, position: np.ndarray) -> np.ndarray:
    """One number in (0, 1) per name, exact multiples of 2**-53.

    Args:
        seed: [N] int64, any value; the key.
        sample_index: [N] int64, at least 0.
        position: [N] int64, at least 0; index of the drawn token in its sequence.

    Returns:
        [N] float64.
    """
    seed_bits = seed.view(np.uint64)
    position_bits = position.view(np.uint64)
    sample_bits = sample_index.view(np.uint64)
    counter = np.stack(
        (position_bits & _LOW_32, position_bits >> _SHIFT_32, sample_bits & _LOW_32, sample_bits >> _SHIFT_32)
    )
    words = philox4x32(counter, np.stack((seed_bits & _LOW_32, seed_bits >> _SHIFT_32)))
    # 52 random bits and a half: never 0, never rounded up to 1.
    bits = ((words[0] << _SHIFT_32) | words[1]) >> np.uint64(12)
    numbers: np.ndarray = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return numbers
