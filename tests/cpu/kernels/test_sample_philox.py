import numpy as np
import pytest

from quire.kernels.sample import philox, reference

# Known answers for philox4x32-10 published with Random123 (kat_vectors): counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_reference_gives_the_published_answers(counter, key, output):
    assert reference.philox4x32(counter, key) == output


def test_vectorised_gives_the_published_answers_in_one_call():
    counters = np.array([row[0] for row in KNOWN_ANSWERS], np.uint64).T
    keys = np.array([row[1] for row in KNOWN_ANSWERS], np.uint64).T
    outputs = np.array([row[2] for row in KNOWN_ANSWERS], np.uint64).T
    np.testing.assert_array_equal(philox.philox4x32(counters, keys), outputs)


def test_uniform_equals_reference_at_the_ends_of_the_ranges():
    names = [
        (seed, sample, position)
        for seed in (0, 1, -1, 2**63 - 1, -(2**63), 0x1234567890)
        for sample in (0, 1, 127)
        for position in (0, 1, 2**31, 2**32, 2**32 + 1, 2**40)
    ]
    columns = np.array(names, np.int64).T.copy()
    expected = [reference.uniform(*name) for name in names]
    np.testing.assert_array_equal(philox.uniform(*columns), expected)
    assert len(set(expected)) == len(names)


def test_uniform_never_reaches_its_ends():
    all_ones = (((2**64 - 1) >> 12) + 0.5) * 2.0**-52
    assert 0.0 < (0 + 0.5) * 2.0**-52
    assert all_ones < 1.0
    positions = np.arange(100_000, dtype=np.int64)
    numbers = philox.uniform(np.full_like(positions, 7), np.zeros_like(positions), positions)
    assert 0.0 < numbers.min() < 1e-4
    assert 1.0 - 1e-4 < numbers.max() < 1.0
    # Mean and variance of 100,000 uniform numbers lie within five standard errors.
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / 1e5) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 5 * (1 / 180 / 1e5) ** 0.5
