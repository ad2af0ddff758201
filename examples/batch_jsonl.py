"""Answers every line of a JSONL file and writes JSONL, as `quire generate --file IN --json --output OUT` does.

A line holds a "question" and may hold "max_tokens". Usage: python examples/batch_jsonl.py IN OUT [MODEL]
"""

import json
import sys
from pathlib import Path

from quire import LLM, SamplingParams


def main() -> None:
    """Runs all questions as one batch; each answer stands in the line of its question."""
    source, target, *model = sys.argv[1:]
    lines = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
    llm = LLM(*model)
    conversations = [[{"role": "user", "content": line["question"]}] for line in lines]
    params = [SamplingParams(temperature=0.0, max_tokens=line.get("max_tokens", 64)) for line in lines]
    outputs = llm.chat(conversations, params)
    with Path(target).open("w", encoding="utf-8") as stream:
        for line, output in zip(lines, outputs, strict=True):
            answer = output.outputs[0]
            result = {"question": line["question"], "answer": answer.text, "finish_reason": answer.finish_reason}
            print(json.dumps(result, ensure_ascii=False), file=stream)


if __name__ == "__main__":
    main()
