"""Records a model's step: its code runs once on stand-ins for tensors, and what it asks the kernels for is kept.

The twin of a CUDA graph. A model does not know of it: `linear(x, ...)`, `attend(...)` and the others see that x is a
`Recorded` and add an instruction to the program. Numbers of tokens and rows are not part of a recording, so one
serves every step.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch

from quire.kernels.native import NativeCpu


class NormWeight(NamedTuple):
    """An RMS norm of the input of a product.

    Attributes:
        weight: [in], of the input's dtype.
        epsilon: Keeps a row of zeros finite.
    """

    weight: torch.Tensor
    epsilon: float


class NativeWeight(Protocol):
    """A `quire.kernels.linear.PackedWeight` whose `data` is the compiled module's weight."""

    @property
    def data(self) -> Any:
        """The compiled module's `Weight`."""

    @property
    def out_features(self) -> int:
        """Its rows."""

    @property
    def in_features(self) -> int:
        """Its columns."""


@dataclass(slots=True, frozen=True)
class Recorded:
    """Stands for rows of float32 [tokens or logit rows, width] that a step will compute.

    Attributes:
        is_of_tokens: Whether there is a row for each token; otherwise for each row whose logits are wanted.
    """

    recording: "Recording"
    value: int
    width: int
    is_of_tokens: bool

    dtype = torch.float32
    is_cuda = False

    def flatten(self, start_dim: int) -> torch.Tensor:
        """Rows have one dimension already. Returns itself."""
        assert start_dim == 1
        return cast(torch.Tensor, self)

    def index_select(self, dim: int, rows: "StepInput") -> torch.Tensor:
        """The rows whose logits are wanted."""
        assert dim == 0 and rows == LOGIT_ROWS and self.is_of_tokens
        recording = self.recording
        return recording.value(recording.program.select_rows(self.value), self.width, is_of_tokens=False)


@dataclass(slots=True, frozen=True)
class StepInput:
    """Stands for what a step is given from outside: "token_ids", "positions", "slot_mapping", "logit_rows"."""

    name: str
    recording: "Recording | None" = None


LOGIT_ROWS = StepInput("logit_rows")


@dataclass(slots=True, frozen=True)
class RecordedCache:
    """Stands for the keys or the values of a layer."""

    layer: int
    num_kv_heads: int
    head_dim: int


class Recording:
    """A program that is being written.

    Attributes:
        program: The compiled module's; `finish` makes it ready to run.
    """

    def __init__(self, native: NativeCpu) -> None:
        self.program: Any = native.extension.StepProgram(native.pool, native.instruction_set)
        # The program points into these.
        self._kept: list[object] = []

    def value(self, value: int, width: int, *, is_of_tokens: bool) -> torch.Tensor:
        """A stand-in for a value of the program."""
        return cast(torch.Tensor, Recorded(self, value, width, is_of_tokens))

    def input(self, width: int, *, is_of_tokens: bool) -> torch.Tensor:
        """Rows that whoever runs the program gives it."""
        return self.value(self.program.input(width), width, is_of_tokens=is_of_tokens)

    def embedding(self, weight: NativeWeight) -> torch.Tensor:
        """Rows of a packed weight by the step's token ids."""
        self._kept.append(weight)
        return self.value(self.program.embedding(weight.data), weight.in_features, is_of_tokens=True)

    def rope_tables(self, inverse_frequencies: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the step's positions, both in one value."""
        tables = self.program.rope_tables(inverse_frequencies.float().contiguous().numpy(), factor)
        both = self.value(tables, 2 * len(inverse_frequencies), is_of_tokens=True)
        return both, both

    def linear(
        self,
        x: Recorded,
        weight: NativeWeight,
        bias: torch.Tensor | None,
        norm: NormWeight | None,
        gated: bool,
        add_to: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `quire.kernels.linear.linear`."""
        target = cast(Recorded | None, add_to)
        is_fused = gated and weight.data.can_gate
        self._kept.append(weight)
        product = self.program.linear(
            x.value,
            x.is_of_tokens,
            weight.data,
            self._vector(bias),
            None if norm is None else self._vector(norm.weight),
            0.0 if norm is None else norm.epsilon,
            is_fused,
            None if target is None else target.value,
        )
        if target is not None:
            assert target.is_of_tokens == x.is_of_tokens
            return cast(torch.Tensor, target)
        if gated and not is_fused:
            product = self.program.silu_mul(product, x.is_of_tokens)
        width = weight.out_features // 2 if gated else weight.out_features
        return self.value(product, width, is_of_tokens=x.is_of_tokens)

    def rms_norm(self, x: Recorded, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `quire.kernels.rms_norm.rms_norm`."""
        normed = self.program.rms_norm(x.value, x.is_of_tokens, self._vector(weight), epsilon)
        return self.value(normed, x.width, is_of_tokens=x.is_of_tokens)

    def rope_kv_write(
        self,
        qkv: Recorded,
        tables: torch.Tensor,
        cache: torch.Tensor,
        num_heads: int,
        query_norm: torch.Tensor | None,
        key_norm: torch.Tensor | None,
        epsilon: float,
    ) -> torch.Tensor:
        """See `quire.kernels.rope_kv_write.rope_kv_write`."""
        layer = cast(RecordedCache, cache)
        query = self.program.rope_kv_write(
            qkv.value,
            cast(Recorded, tables).value,
            layer.layer,
            num_heads,
            layer.num_kv_heads,
            layer.head_dim,
            self._vector(query_norm),
            self._vector(key_norm),
            epsilon,
        )
        return self.value(query, num_heads * layer.head_dim, is_of_tokens=True)

    def attend(
        self,
        query: Recorded,
        cache: torch.Tensor,
        scale: float,
        sliding_window: int | None,
        soft_cap: float | None,
    ) -> torch.Tensor:
        """See `quire.kernels.paged_attention.attend`."""
        layer = cast(RecordedCache, cache)
        attended = self.program.attend(
            query.value,
            layer.layer,
            query.width // layer.head_dim,
            layer.num_kv_heads,
            layer.head_dim,
            scale,
            sliding_window or 0,
            soft_cap or 0.0,
        )
        return self.value(attended, query.width, is_of_tokens=True)

    def finish(self, result: torch.Tensor) -> None:
        """Makes the program ready to run; `result` is what it returns."""
        last = cast(Recorded, result)
        self.program.finish(last.value, last.is_of_tokens)

    def _vector(self, vector: torch.Tensor | None) -> Any:
        """The memory of a vector, kept as long as the program."""
        if vector is None:
            return None
        memory = vector.detach().float().contiguous().numpy()
        self._kept.append(memory)
        return memory
