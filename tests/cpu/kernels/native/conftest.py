"""The compiled kernels in every instruction set that this machine has."""

import pytest

from quire.kernels import native
from quire.kernels.native import NativeCpu

INSTRUCTION_SETS = native.instruction_sets() or [
    pytest.param("none", marks=pytest.mark.skip("quire was installed without compiled kernels"))
]


@pytest.fixture(params=INSTRUCTION_SETS)
def compiled(request) -> NativeCpu:
    """The kernels of one instruction set, on two threads."""
    return NativeCpu.create(2, request.param)


@pytest.fixture
def best() -> NativeCpu:
    """The kernels that quire would take here, on two threads."""
    found = NativeCpu.create(2)
    if found is None:
        pytest.skip("quire was installed without compiled kernels")
    return found
