"""Where a tensor of a checkpoint goes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows of a parameter that one checkpoint tensor fills.

    Attributes:
        parameter: Name of the parameter in the model ("layers.0.attention.qkv.weight").
        row_start: First row that the tensor fills.
        num_rows: Rows that it fills; its first dimension.
    """

    parameter: str
    row_start: int
    num_rows: int
