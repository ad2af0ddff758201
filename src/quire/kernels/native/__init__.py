"""The compiled CPU kernels, and steps that are recorded once and replayed by them without Python.

`cpu/` holds what all kernels share in C++: vectors of sixteen numbers, threads that run phases together, programs.
An op's own C++ lies in its folder (`linear/cpu/`). One binary holds every instruction set; the best that the machine
has is taken. Without the binary (no compiler at install) quire runs on torch.

Read first: `recording.py`, `cpu/step.h`, `cpu/thread_pool.h`, then `../linear/cpu/packed_weight.h`.
"""

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

MISSING_HINT = "install a C++ compiler (on Debian: apt-get install g++) and install quire again"


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, None where the package was built without one."""
    try:
        return importlib.import_module("quire.kernels.native._extension")
    except ImportError:
        return None


def instruction_sets() -> list[str]:
    """Those that this machine can run, the best first; empty without the compiled module."""
    module = extension()
    return [] if module is None else list(module.instruction_sets())


@dataclass(slots=True, frozen=True)
class NativeCpu:
    """The compiled kernels with the threads that they run on.

    Attributes:
        extension: The compiled module.
        pool: Its threads; used by one caller at a time.
        instruction_set: Of the kernels ("avx512_vnni").
    """

    extension: Any
    pool: Any
    instruction_set: str

    @classmethod
    def create(cls, num_threads: int, instruction_set: str | None = None) -> "NativeCpu | None":
        """Starts the threads; None without the compiled module.

        Args:
            num_threads: The caller's thread included.
            instruction_set: One of `instruction_sets()`; the best where None.
        """
        module = extension()
        if module is None:
            return None
        return cls(module, module.ThreadPool(num_threads), instruction_set or instruction_sets()[0])


def describe_kernels() -> str:
    """For people: what multiplies matrices on this CPU, and what would be faster."""
    if extension() is None:
        return f"torch and oneDNN, because quire was installed without a compiler; {MISSING_HINT}"
    return f"compiled, {instruction_sets()[0]}"
