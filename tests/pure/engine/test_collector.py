"""The garbage collector while an engine starts and works."""

import gc

import pytest

from quire.engine.collector import YOUNG_OBJECTS, no_collections, rare_collections


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


def test_no_collections_while_it_lasts() -> None:
    assert gc.isenabled()
    with pytest.raises(ImportError), no_collections():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_no_collections_leaves_a_disabled_collector_disabled() -> None:
    gc.disable()
    try:
        with no_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
