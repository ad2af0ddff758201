"""Milliseconds of a decode step of a whole model in one CUDA graph, without host or sampler, at many batches.

    python benchmarks/gpu_decode_step.py MODEL_FOLDER [--cases 1x250 32x450 32xmix]

`NxC` is N sequences of C tokens each; `Nxmix` N of those that are left of 256 requests of 100 to 1,024 tokens in and
out: lengths differ, and the fewer there are the longer they are. Weights, keys and values are random; the median of the
replays.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from quire.checkpoint.architecture import ModelArchitecture, parse_architecture
from quire.kernels.paged_attention.cuda_plan import CudaAttentionMetadata, make_decode_workspace
from quire.kernels.step_inputs import StepInputs, step_inputs
from quire.layers.forward_batch import ForwardBatch
from quire.models.registry import create_model

DEVICE = torch.device("cuda")
BLOCK_SIZE = 16
MAX_CONTEXT = 4096
MAX_ROWS = 256
NUM_BLOCKS = 10_240
NUM_REPLAYS = 21
CASES = [
    *("1x250", "1x1500", "4xmix", "8xmix", "16xmix", "24xmix", "32x150", "32x300"),
    *("32x450", "32x600", "32xmix", "40xmix", "48xmix", "56xmix", "64xmix"),
]


def lengths_of(case: str) -> np.ndarray:
    """Contexts [N], the longest first, as the engine orders them."""
    number, kind = case.split("x", maxsplit=1)
    count = int(number)
    if kind != "mix":
        return np.full(count, int(kind))
    produced = 1024 - count * 924 // 256
    lengths = np.random.default_rng(1).integers(100, 1025, count) + produced
    return np.sort(lengths)[::-1].copy()


def median_milliseconds(run: Callable[[], object]) -> float:
    """Of a graph's replays, each alone."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        run()
        graph.capture_end()
        times = []
        for _ in range(NUM_REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


class Steps:
    """A model with caches that hold any case."""

    def __init__(self, architecture: ModelArchitecture) -> None:
        self.model = create_model(architecture, dtype=torch.bfloat16, max_model_len=MAX_CONTEXT).to_empty(device=DEVICE)
        for parameter in self.model.parameters():
            parameter.normal_(std=0.02)
        self.model.finish_loading()
        num_kv_heads, head_dim = architecture.num_key_value_heads, architecture.head_dim
        shape = (NUM_BLOCKS, BLOCK_SIZE, num_kv_heads, head_dim)
        self.kv_caches = [
            (
                torch.randn(shape, dtype=torch.bfloat16, device=DEVICE),
                torch.randn(shape, dtype=torch.bfloat16, device=DEVICE),
            )
            for _ in range(architecture.num_hidden_layers)
        ]
        self.workspace = make_decode_workspace(
            MAX_ROWS, architecture.num_attention_heads, num_kv_heads, head_dim, dtype=torch.bfloat16, device=DEVICE
        )
        self.last_tokens = torch.randint(0, 1000, (MAX_ROWS + 1,), dtype=torch.int32, device=DEVICE)

    def run(self, packed: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
        """Logits of the rows of packed [4, N], see `step_inputs`."""
        count = packed.shape[1]
        inputs = StepInputs(
            token_ids=torch.empty(count, dtype=torch.int32, device=DEVICE),
            slot_mapping=torch.empty(count, dtype=torch.int64, device=DEVICE),
            decodes=torch.empty((count, 3), dtype=torch.int32, device=DEVICE),
            draw_positions=torch.empty(count, dtype=torch.int32, device=DEVICE),
        )
        step_inputs(packed, tables, self.last_tokens, inputs, block_size=BLOCK_SIZE)
        assert inputs.decodes is not None
        attention = CudaAttentionMetadata(
            num_tokens=count,
            decodes=inputs.decodes,
            tiles=torch.empty((0, 4), dtype=torch.int32, device=DEVICE),
            block_tables=tables,
            max_context_length=MAX_CONTEXT,
            workspace=self.workspace,
        )
        batch = ForwardBatch(
            token_ids=inputs.token_ids,
            positions=packed[1],
            slot_mapping=inputs.slot_mapping,
            logit_rows=None,
            kv_caches=self.kv_caches,
            attention=attention,
        )
        return self.model.compute_logits(self.model(batch))

    def milliseconds(self, lengths: np.ndarray) -> float | None:
        """Of a step with these contexts; None if they do not fit the caches."""
        count, needed = len(lengths), lengths // BLOCK_SIZE + 1
        if needed.sum() > NUM_BLOCKS:
            return None
        tables = np.zeros((MAX_ROWS + 1, MAX_CONTEXT // BLOCK_SIZE + 1), np.int32)
        blocks = np.split(np.random.default_rng(2).permutation(NUM_BLOCKS), np.cumsum(needed))
        for row, own in enumerate(blocks[:count]):
            tables[row, : len(own)] = own
        packed = np.full((4, count), -1, np.int32)
        packed[0], packed[1], packed[2] = 5, lengths, np.arange(count)
        on_device = torch.from_numpy(packed).to(DEVICE), torch.from_numpy(tables).to(DEVICE)
        return median_milliseconds(lambda: self.run(*on_device))


@torch.inference_mode()
def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", nargs="+", default=CASES)
    options = parser.parse_args()
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    steps = Steps(parse_architecture(config, source=str(options.model)))
    for case in options.cases:
        found = steps.milliseconds(lengths_of(case))
        print(f"{case:<10}" + ("does not fit" if found is None else f"{found:8.3f} ms"), flush=True)


if __name__ == "__main__":
    main()
