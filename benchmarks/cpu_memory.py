"""Peak resident memory of an engine on the small model, against its weights and the KV cache that it has touched.

python benchmarks/cpu_memory.py [quire's options as key=value ...]
"""

import sys

from quire import LLM, SamplingParams

ALLOWED_BYTES = 400e6


def peak_bytes() -> int:
    """The most that was ever resident: anonymous memory and pages of files."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    llm = LLM(max_model_len=2048, use_tqdm_on_load=False, **options)
    prompts = [{"prompt_token_ids": [10 + (7 * n + 3 * i) % 40000 for i in range(128)]} for n in range(32)]
    llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=128, ignore_eos=True), use_tqdm=False)
    ledger = llm._engine.executor.memory  # type: ignore[attr-defined]
    touched = 32 * 256 * (ledger.block_bytes // ledger.block_size)
    peak, bound = peak_bytes(), ledger.weight_bytes + touched + ALLOWED_BYTES
    parts = f"weights {ledger.weight_bytes / 1e6:.0f}, KV touched {touched / 1e6:.0f}, allowed {bound / 1e6:.0f}"
    print(f"peak resident {peak / 1e6:.0f} MB ({parts}): {'kept' if peak <= bound else 'EXCEEDED'}")


if __name__ == "__main__":
    main()
