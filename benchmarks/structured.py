"""What structured output costs: a batch of mixed schemas against the same batch without grammars.

    python benchmarks/structured.py [--batch 32] [--tokens 64] [--rounds 11] [--model FOLDER] [--engine JSON]
                                    [--results FILE]

Both run the same number of tokens, on the small model unless another is named: `ignore_eos` and schemas whose strings
must go on. On a GPU with random weights: `--engine '{"load_format": "dummy", "dtype": "bfloat16"}' --tokens 512`.
The rounds of the two alternate, and the medians are compared, so that a machine that slows down slows both.
Also the time of a mask, of taking in a token, and of compiling a schema, alone.
"""

import argparse
import statistics
import time
from typing import Any

from gpu_report import append_rows, engine_options
from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.checkpoint.checkpoint import open_checkpoint
from quire.config.model import ModelConfig
from quire.engine.grammar import SampleConstraint, compile_grammar, make_tokenizer
from quire.engine.grammar_masks import MaskMaker
from quire.entrypoints.launch import load_vocabulary
from quire.frontend.structured_outputs import lower


def schema(index: int, min_length: int = 400) -> dict[str, object]:
    """One of many different schemas, none of which is complete before `min_length` characters."""
    long_text = {"type": "string", "minLength": min_length}
    names = [f"field{index}_{position}" for position in range(1 + index % 5)]
    kinds = [
        {"type": "integer", "minimum": 0, "maximum": 1000 + index},
        {"enum": [f"choice {number}" for number in range(2 + index % 7)]},
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
        {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        {"type": "string", "format": "date"},
    ]
    properties = {name: kinds[(index + place) % len(kinds)] for place, name in enumerate(names)}
    properties["story"] = long_text
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def measure(llm: LLM, params: list[SamplingParams], prompts: list[list[int]]) -> tuple[float, int]:
    """Seconds and tokens of one batch."""
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return seconds, sum(len(output.outputs[0].token_ids) for output in outputs)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the rates of free and structured batches, and their ratio."""
    batch, num_tokens, rounds = arguments.batch, arguments.tokens, arguments.rounds
    defaults = {"dtype": "float32", "max_model_len": max(512, 2 * num_tokens), "kv_cache_memory_bytes": 1 << 30}
    llm = LLM(arguments.model, **{**defaults, "max_num_seqs": batch, **engine_options(arguments.engine)})
    prompts = [[1, *range(1000 + 10 * index, 1016 + 10 * index)] for index in range(batch)]
    common = {"max_tokens": num_tokens, "ignore_eos": True}
    free = [SamplingParams(seed=index, **common) for index in range(batch)]
    structured = [
        SamplingParams(
            seed=index,
            **common,
            structured_outputs=StructuredOutputsParams(
                json=schema(index, max(400, 12 * num_tokens)), disable_any_whitespace=bool(index % 2)
            ),
        )
        for index in range(batch)
    ]
    kinds = {"free": free, "structured": structured}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for name, params in kinds.items():
        seconds, count = measure(llm, params, prompts)
        print(f"{name:10}  first round {count / seconds:8.1f} tok/s ({count} tokens)")
    for index in range(rounds):
        for name in sorted(kinds, reverse=bool(index % 2)):
            seconds, count = measure(llm, kinds[name], prompts)
            assert count == batch * num_tokens, f"{name}: {count} tokens, wanted {batch * num_tokens}"
            rates[name].append(count / seconds)
    for name, values in rates.items():
        print(f"{name:10}  median {statistics.median(values):8.1f} tok/s  of {[round(value, 1) for value in values]}")
    ratio = statistics.median(rates["structured"]) / statistics.median(rates["free"])
    print(f"ratio       {ratio:.3f}  (wanted: 0.95)")
    llm.shutdown()
    return {"batch": batch, "tokens": num_tokens, "ratio": ratio, "tok_s": rates}


def measure_parts(batch: int, model: str, load_format: str) -> None:
    """Prints what compiling, a mask and a token take."""
    vocabulary = load_vocabulary(open_checkpoint(ModelConfig(model=model, load_format=load_format)))
    begin = time.perf_counter()
    tokenizer = make_tokenizer(vocabulary)
    print(f"vocabulary of {vocabulary.vocab_size}: {time.perf_counter() - begin:.2f} s, once")
    compiling, matchers = [], []
    for index in range(batch):
        grammar = lower(StructuredOutputsParams(json=schema(index)))
        begin = time.perf_counter()
        matchers.append(compile_grammar(tokenizer, grammar))
        compiling.append(time.perf_counter() - begin)
    print(
        f"compile and first mask: median {1e3 * statistics.median(compiling):.2f} ms, max {1e3 * max(compiling):.2f} ms"
    )
    constraints = [SampleConstraint(matcher.deep_copy()) for matcher in matchers]
    maker = MaskMaker(vocabulary.vocab_size)
    masks, tokens = [], []
    for step in range(40):
        begin = time.perf_counter()
        promise = maker.promise(list(enumerate(constraints)))
        promise.start()
        words = memoryview(promise.result()).cast("I")
        masks.append(time.perf_counter() - begin)
        num_words = len(words) // batch
        chosen = [pick(words[row * num_words : (row + 1) * num_words], step, row) for row in range(batch)]
        begin = time.perf_counter()
        for constraint, token_id in zip(constraints, chosen, strict=True):
            constraint.advance(token_id)
        tokens.append(time.perf_counter() - begin)
    print(f"masks of {batch} rows: median {1e3 * statistics.median(masks):.2f} ms, max {1e3 * max(masks):.2f} ms")
    print(f"taking in {batch} tokens: median {1e3 * statistics.median(tokens):.2f} ms, max {1e3 * max(tokens):.2f} ms")


def pick(mask: memoryview, step: int, row: int) -> int:
    """Some token that a mask allows."""
    bits = int.from_bytes(mask.tobytes(), "little")
    place = (step * 7919 + row * 104_729) % (32 * len(mask))
    above = bits >> place
    return place + (above & -above).bit_length() - 1 if above else bits.bit_length() - 1


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--model", default="")
    parser.add_argument("--engine", help="more options of LLM, a JSON object")
    parser.add_argument("--results", help="file that the raw row is added to")
    arguments = parser.parse_args()
    load_format = engine_options(arguments.engine).get("load_format", "auto")
    measure_parts(arguments.batch, arguments.model, load_format)
    append_rows(arguments.results, [{"model": arguments.model, "engine": arguments.engine, **compare(arguments)}])


if __name__ == "__main__":
    main()
