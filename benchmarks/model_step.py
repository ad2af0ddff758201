"""Seconds per step of the model alone: SmolLM2-135M's shapes, random weights, beside Transformers in float32.

Usage: python benchmarks/model_step.py [--threads 2] [--rounds 5] [--cpu-time] [--no-transformers]
The contenders take turns, so that a machine whose speed drifts (or that is shared) treats them alike; the best round
of each counts. Decoding starts at a context of 256 tokens.
"""

import argparse
import platform
import time
from collections.abc import Callable

import torch

from quire.checkpoint.architecture import ModelArchitecture, parse_architecture
from quire.kernels.paged_attention import prepare
from quire.layers.forward_batch import ForwardBatch
from quire.models.registry import create_model

Clock = Callable[[], float]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
CONTEXT = 256
DECODE_STEPS = 8
CELLS = (("decode 1", 1, 1), ("decode 16", 16, 1), ("decode 32", 32, 1), ("prefill 512", 1, 512), ("16 x 128", 16, 128))


class PagedModel:
    """A model with caches for 32 sequences."""

    def __init__(self, architecture: ModelArchitecture, dtype: torch.dtype) -> None:
        self.model = create_model(architecture, dtype=dtype).to_empty(device="cpu")
        for parameter in self.model.parameters():
            parameter.normal_(std=0.02)
        self.model.finish_loading()
        self.max_blocks = 40
        shape = (32 * self.max_blocks, 16, architecture.num_key_value_heads, architecture.head_dim)
        self.kv_caches = [
            (torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype))
            for _ in range(architecture.num_hidden_layers)
        ]
        self.tables = torch.randperm(shape[0]).view(32, self.max_blocks).to(torch.int32)

    def step(self, num_sequences: int, start: int, count: int) -> None:
        """Computes `count` tokens behind `start` of each sequence and the logits of the last."""
        positions = torch.arange(start, start + count).repeat(num_sequences)
        tables = self.tables[:num_sequences]
        slots = (tables[:, positions[:count] // 16] * 16 + positions[:count] % 16).view(-1).to(torch.int64)
        batch = ForwardBatch(
            token_ids=torch.randint(0, 49152, (num_sequences * count,)),
            positions=positions,
            slot_mapping=slots,
            logit_rows=torch.arange(count - 1, num_sequences * count, count),
            kv_caches=self.kv_caches,
            attention=prepare(
                [count] * num_sequences,
                [start + count] * num_sequences,
                tables,
                self.kv_caches[0][0],
                dtype=self.model.dtype,
                sliding_windows=self.model.sliding_windows,
            ),
        )
        self.model.compute_logits(self.model.forward(batch))


def quire_cell(clock: Clock, model: PagedModel, num_sequences: int, count: int) -> Callable[[], float]:
    """One measurement: seconds per step."""

    def measure() -> float:
        num_steps = DECODE_STEPS if count == 1 else 1
        started = clock()
        for i in range(num_steps):
            model.step(num_sequences, CONTEXT + i if count == 1 else 0, count)
        return (clock() - started) / num_steps

    return measure


def transformers_cell(clock: Clock, model: torch.nn.Module, num_sequences: int, count: int) -> Callable[[], float]:
    """The same with Transformers' growing cache."""
    from transformers import DynamicCache

    def measure() -> float:
        cache = DynamicCache(config=model.config)
        prompt = torch.randint(0, 49152, (num_sequences, CONTEXT if count == 1 else count))
        started = clock()
        model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if count > 1:
            return clock() - started
        started = clock()
        for _ in range(DECODE_STEPS):
            model(prompt[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return (clock() - started) / DECODE_STEPS

    return measure


def make_contenders(clock: Clock, *, with_transformers: bool) -> dict[str, Callable[[int, int], Callable[[], float]]]:
    """Functions that make a cell's measurement, by contender."""
    architecture = parse_architecture(CONFIG, source="CONFIG")
    contenders: dict[str, Callable[[int, int], Callable[[], float]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = PagedModel(architecture, dtype)
        contenders[f"quire {str(dtype).removeprefix('torch.')}"] = lambda num, count, model=model: quire_cell(
            clock, model, num, count
        )
    if with_transformers:
        from transformers import LlamaConfig, LlamaForCausalLM

        options = {key: value for key, value in CONFIG.items() if key not in ("architectures", "model_type")}
        theirs = LlamaForCausalLM(LlamaConfig(**options)).eval()
        contenders["transformers float32"] = lambda num, count: transformers_cell(clock, theirs, num, count)
    return contenders


@torch.inference_mode()
def main() -> None:
    """Prints one row per cell: milliseconds of the best round, and the ratio to Transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds; with one thread, for a busy machine")
    parser.add_argument("--no-transformers", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    contenders = make_contenders(
        time.process_time if args.cpu_time else time.perf_counter, with_transformers=not args.no_transformers
    )
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}")
    print(f"{'ms per step':<14}" + "".join(f"{name:>24}" for name in contenders))
    for cell, num_sequences, count in CELLS:
        measures = {name: make(num_sequences, count) for name, make in contenders.items()}
        best = dict.fromkeys(measures, float("inf"))
        for _ in range(args.rounds + 1):
            for name, measure in measures.items():
                best[name] = min(best[name], measure())
        base = best.get("transformers float32")
        shown = (f"{1000 * value:.1f}" + (f" ({base / value:.2f} x)" if base else "") for value in best.values())
        print(f"{cell:<14}" + "".join(f"{text:>24}" for text in shown), flush=True)


if __name__ == "__main__":
    main()
