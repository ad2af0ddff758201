"""oneDNN through the operators that torch's own compiler emits for frozen CPU models.

`torch.nn.functional.linear` in float32 always takes MKL, which on AMD runs at under half of the machine's speed, and
reorders a bfloat16 weight on every call. A weight in oneDNN's blocked layout avoids both (`benchmarks/linear.py`).
"""

import functools
import logging

import torch
from torch.nn import functional

logger = logging.getLogger("quire.kernels")

_FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def is_usable(weight: torch.Tensor) -> bool:
    """Whether this build, this CPU and the weight's number format have it."""
    return weight.device.type == "cpu" and weight.numel() > 0 and _works_with(weight.dtype)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A copy in oneDNN's blocked layout; opaque, without storage that torch could view."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return packed


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias.

    A row's result does not depend on the rows beside it, except that one row alone may be summed in another order. So
    one row is multiplied as two: a sequence then computes the same numbers alone and in a batch.
    """
    if x.shape[0] == 1:
        return multiply(x.expand(2, -1), weight, bias)[:1]
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product


@functools.cache
def _works_with(dtype: torch.dtype) -> bool:
    """Tries it on a small product: the operators are torch's own business and may change."""
    reason = _obstacle(dtype)
    if reason:
        logger.info("linear: plain torch for %s, not oneDNN: %s", dtype, reason)
    return reason is None


def _obstacle(dtype: torch.dtype) -> str | None:
    if dtype not in _FORMATS or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "not in this build"
    if not _is_native(dtype):
        return "this CPU lacks the instructions"
    x, weight = torch.linspace(-1, 1, 15, dtype=dtype).view(3, 5), torch.linspace(-2, 1, 35, dtype=dtype).view(7, 5)
    try:
        product = multiply(x, pack(weight), None)
    except (AttributeError, RuntimeError, TypeError) as error:
        return str(error).splitlines()[0]
    expected = functional.linear(x.float(), weight.float())
    return None if torch.allclose(product.float(), expected, atol=0.1, rtol=0.01) else "wrong result"


def _is_native(dtype: torch.dtype) -> bool:
    if dtype == torch.float32:
        return True
    probe = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    try:
        return bool(getattr(torch.ops.mkldnn, probe)())
    except (AttributeError, RuntimeError):
        return False
