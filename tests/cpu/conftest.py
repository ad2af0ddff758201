"""Triton's kernels run on CPU tensors where there is no GPU."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Read when a kernel is decorated, so before any test module imports one.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _interpreter() -> Iterator[None]:
    """Repairs Triton's interpreter where it is in the way: bounds of loops under numpy 2.4, and its speed."""
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime import interpreter

    patch_tensor, prepared = interpreter._patch_lang_tensor, set()

    def patch(tensor: Any, *rest: Any) -> None:
        """numpy 2.4 refuses int() of an array of one number, which the interpreter uses for the bounds of loops."""
        patch_tensor(tensor, *rest)
        tensor.__index__ = lambda self: self.handle.data.item()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        """The interpreter prepares `triton.language` for every call of a function; once will do."""
        module = function.fn.__module__
        if not module.startswith("quire.") and module not in prepared:
            prepared.add(module)
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang_tensor", patch)
        patches.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
