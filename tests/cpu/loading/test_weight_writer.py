"""The way through staging buffers yields what writing in place does; on a CPU, where nothing is pinned."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from quire.models.loading import load as load_module
from quire.models.loading.weight_writer import WeightWriter

CPU = torch.device("cpu")


def pack(values: torch.Tensor, kind: gguf.GGMLQuantizationType) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.quantize(values.numpy(), kind)).view(torch.uint8).view(len(values), -1)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("staging_bytes", [1, 1000, 4096, 2**20])
def test_pieces_arrive_as_a_whole(kind: str, wanted: torch.dtype, staging_bytes: int) -> None:
    """Buffers smaller than a row, of a few rows, and larger than all."""
    values = torch.randn(37, 96, generator=torch.Generator().manual_seed(1))
    packed = pack(values, gguf.GGMLQuantizationType[kind])
    in_place, staged = (torch.full((37, 96), torch.nan, dtype=wanted) for _ in range(2))
    with WeightWriter(CPU) as writer:
        writer.write(packed, kind, in_place)
    with WeightWriter(CPU, staging_bytes=staging_bytes, is_staged=True) as writer:
        writer.write(packed, kind, staged)
    assert torch.equal(staged, in_place)
    assert not in_place.isnan().any()


def test_vectors_and_matrices_share_the_buffers() -> None:
    generator = torch.Generator().manual_seed(2)
    tensors = [torch.randn(shape, generator=generator) for shape in ((300, 1), (7, 64), (1, 500), (64, 32))]
    outs = [torch.empty(tensor.shape, dtype=torch.float16) for tensor in tensors]
    with WeightWriter(CPU, staging_bytes=256, is_staged=True) as writer:
        for tensor, out in zip(tensors, outs, strict=True):
            writer.write(tensor.view(torch.uint8).view(len(tensor), -1), "F32", out)
    assert all(torch.equal(out, tensor.half()) for tensor, out in zip(tensors, outs, strict=True))


def test_a_model_by_way_of_the_buffers(
    tmp_path: Path, checkpoints: Any, same_tensors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpoints.config_of("Qwen2ForCausalLM")
    tensors = checkpoints.random_tensors(config, torch.bfloat16)
    checkpoint = checkpoints.open(checkpoints.write_folder(tmp_path, config, tensors))
    monkeypatch.setattr(
        load_module, "WeightWriter", lambda device: WeightWriter(device, staging_bytes=5000, is_staged=True)
    )
    same_tensors(checkpoints.load_tensors(checkpoint, torch.bfloat16), tensors)
