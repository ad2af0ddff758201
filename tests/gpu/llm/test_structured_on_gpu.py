"""Rows under grammars beside free ones: what they say is what was asked for, and what the CPU says, in float32."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, RequestOutput, SamplingParams, StructuredOutputsParams
from quire.errors import InvalidRequestError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
DATE = r"\d{4}-[01]\d-[0-3]\d"
CHOICES = ["positive", "negative", "neither"]


def is_of_schema(text: str) -> bool:
    value = json.loads(text)
    return list(value) == ["name", "age"] and 1 <= len(value["name"]) <= 12 and 0 <= value["age"] <= 120


def is_date(text: str) -> bool:
    return re.fullmatch(DATE, text) is not None


ASKED: list[tuple[dict[str, Any] | None, dict[str, Any], Callable[[str], bool]]] = [
    ({"json": SCHEMA, "disable_any_whitespace": True}, {"temperature": 0.0}, is_of_schema),
    (None, {"temperature": 0.0, "max_tokens": 40}, bool),
    ({"json": SCHEMA, "disable_any_whitespace": True}, {"temperature": 0.8, "top_p": 0.9, "seed": 1}, is_of_schema),
    ({"regex": DATE}, {"temperature": 0.9, "top_k": 5, "seed": 2}, is_date),
    (None, {"temperature": 0.9, "top_k": 40, "seed": 3, "max_tokens": 25}, bool),
    ({"choice": CHOICES}, {"temperature": 0.0, "logprobs": 2}, CHOICES.__contains__),
    ({"regex": DATE}, {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5}, is_date),
    ({"choice": CHOICES}, {"temperature": 1.0, "n": 3, "seed": 4}, CHOICES.__contains__),
    (None, {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1, "seed": 5, "max_tokens": 30}, bool),
]


@pytest.fixture(params=[False, True], ids=["graphs", "eager"])
def gpu_engine(request: pytest.FixtureRequest, model_path: Path, start_engine: Any) -> LLM:
    """A fresh engine, with and without graphs."""
    llm: LLM = start_engine(model_path, enforce_eager=request.param, max_num_seqs=16)
    return llm


def run(llm: LLM, prompts: list[str]) -> list[RequestOutput]:
    """All of `ASKED` in one batch."""
    params = []
    for structured, options, _ in ASKED:
        outputs = None if structured is None else StructuredOutputsParams(**structured)
        params.append(SamplingParams(**{"max_tokens": 60, "structured_outputs": outputs, **options}))
    return llm.generate(prompts[: len(params)], params, use_tqdm=False)


@pytest.fixture(scope="module")
def expected(cpu_engine: LLM, prompts: list[str]) -> Iterator[list[RequestOutput]]:
    """What the CPU says."""
    yield run(cpu_engine, prompts * 2)


def test_grammars_beside_free_rows(gpu_engine: LLM, expected: list[RequestOutput], prompts: list[str]) -> None:
    actual = run(gpu_engine, prompts * 2)
    for (structured, _, is_right), ours, theirs in zip(ASKED, actual, expected, strict=True):
        assert [answer.token_ids for answer in ours.outputs] == [answer.token_ids for answer in theirs.outputs]
        for answer in ours.outputs:
            assert is_right(answer.text), answer.text
            assert structured is None or answer.finish_reason == "stop"


def test_a_grammar_and_parameters_without_a_common_token(gpu_engine: LLM, prompts: list[str]) -> None:
    """It is the caller's fault, and the engine goes on."""
    impossible = SamplingParams(
        structured_outputs=StructuredOutputsParams(choice=["yes", "no"]), allowed_token_ids=[5], max_tokens=8
    )
    free = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with pytest.raises(InvalidRequestError, match="no token"):
        gpu_engine.generate(prompts[:2], [impossible, free], use_tqdm=False)
    (after,) = gpu_engine.generate(prompts[1:2], free, use_tqdm=False)
    assert len(after.outputs[0].token_ids) == 8
