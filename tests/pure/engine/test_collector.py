"""The garbage collector's threshold while an engine works."""

import gc

import pytest

from quire.engine.collector import YOUNG_OBJECTS, rare_collections


@pytest.mark.parametrize(("young", "during"), [(700, YOUNG_OBJECTS), (2 * YOUNG_OBJECTS, 2 * YOUNG_OBJECTS), (0, 0)])
def test_the_threshold_rises_and_comes_back(young: int, during: int) -> None:
    before = gc.get_threshold()
    gc.set_threshold(young, 11, 12)
    try:
        with pytest.raises(KeyError), rare_collections():
            assert gc.get_threshold() == (during, 11, 12)
            raise KeyError
        assert gc.get_threshold() == (young, 11, 12)
    finally:
        gc.set_threshold(*before)
