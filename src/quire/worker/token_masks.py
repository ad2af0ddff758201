"""The masks of a plan, as the sampler takes them."""

import numpy as np

from quire.kernels.sample import TokenMask
from quire.types.plan import StepPlan


def wait_for_mask(plan: StepPlan, plan_indices: np.ndarray) -> TokenMask | None:
    """What the rows of a drawing batch may draw, None if that is everything. Waits for it to be computed.

    Args:
        plan: Perhaps with masks.
        plan_indices: [N] int64; where the rows of the batch stand in the plan.
    """
    if plan.masks is None:
        return None
    row_of = dict(zip(plan_indices.tolist(), range(len(plan_indices)), strict=True))
    # A sequence that has failed is in the plan, and not in the batch.
    found = [(row_of[index], place) for place, index in enumerate(plan.masks.rows) if index in row_of]
    if not found:
        return None
    words = np.frombuffer(plan.masks.result(), np.uint32).reshape(len(plan.masks.rows), -1)
    rows, places = np.array(found, np.int64).T
    return TokenMask(rows, words[places])
