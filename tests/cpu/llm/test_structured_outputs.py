"""Structured output of a real model: what comes out is what was asked for."""

import asyncio
import json
import re

import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.config.engine import EngineConfig
from quire.entrypoints.launch import start_async_engine_in_process
from quire.errors import InvalidRequestError
from quire.kernels import native
from quire.types.sampling import RequestOutputKind

# Without compiled kernels only float32 gives a request the same tokens whoever shares the batch.
OPTIONS = {"dtype": "auto" if native.extension() else "float32", "max_model_len": 256}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMAR = 'start: NUMBER (" + " NUMBER){1,3}\nNUMBER: /[0-9]{1,2}/'


@pytest.fixture(scope="module")
def llm():
    llm = LLM(**OPTIONS, kv_cache_memory_bytes=8 << 20)
    yield llm
    llm.shutdown()


def answers(llm, prompt, structured, **parameters):
    params = SamplingParams(
        **{"max_tokens": 80, "seed": 5, **parameters}, structured_outputs=StructuredOutputsParams(**structured)
    )
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    return output.outputs


def is_of_schema(text):
    value = json.loads(text)
    return (
        list(value) == ["name", "age", "tags"]
        and 1 <= len(value["name"]) <= 12
        and isinstance(value["age"], int)
        and 0 <= value["age"] <= 120
        and len(value["tags"]) <= 2
        and set(value["tags"]) <= {"red", "green"}
    )


CASES = [
    pytest.param({"json": SCHEMA, "disable_any_whitespace": True}, is_of_schema, id="json"),
    pytest.param(
        {"json": json.dumps(SCHEMA), "whitespace_pattern": " "},
        lambda text: is_of_schema(text) and "\n" not in text,
        id="json_text",
    ),
    pytest.param(
        {"regex": r"\d{4}-[01]\d-[0-3]\d"}, lambda text: re.fullmatch(r"\d{4}-[01]\d-[0-3]\d", text), id="regex"
    ),
    pytest.param(
        {"choice": ["positive", "negative", "neither"]},
        lambda text: text in ("positive", "negative", "neither"),
        id="choice",
    ),
    pytest.param({"grammar": GRAMMAR}, lambda text: re.fullmatch(r"\d{1,2}( \+ \d{1,2}){1,3}", text), id="grammar"),
    pytest.param(
        {
            "structural_tag": {
                "type": "structural_tag",
                "format": {
                    "type": "tag",
                    "begin": "<n>",
                    "end": "</n>",
                    "content": {"type": "regex", "pattern": "[0-9]{3}"},
                },
            }
        },
        lambda text: re.fullmatch(r"<n>\d{3}</n>", text),
        id="structural_tag",
    ),
]


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"temperature": 0.0}, id="greedy"),
        pytest.param({"n": 2, "logprobs": 1, "presence_penalty": 2.0, "repetition_penalty": 1.5}, id="samples"),
        pytest.param({"min_tokens": 70, "ignore_eos": True, "top_p": 0.9}, id="late_ends"),
    ],
)
def test_answers_are_as_asked(llm, parameters):
    """All kinds in one batch, with a free request among them."""
    params = [
        SamplingParams(**{"max_tokens": 80, "seed": 5, **parameters}, structured_outputs=structured)
        for structured in (*(StructuredOutputsParams(**case.values[0]) for case in CASES), None)
    ]
    outputs = llm.generate(["The data:"] * len(params), params, use_tqdm=False)
    for case, request in zip(CASES, outputs[:-1], strict=True):
        assert len(request.outputs) == parameters.get("n", 1)
        for output in request.outputs:
            assert (output.finish_reason, output.stop_reason) == ("stop", None)
            assert case.values[1](output.text), output.text
            if "logprobs" in parameters:
                assert len(output.logprobs) == len(output.token_ids)
    (alone,) = llm.generate(["The data:"], params[-1], use_tqdm=False)
    assert [answer.token_ids for answer in alone.outputs] == [answer.token_ids for answer in outputs[-1].outputs]


def test_json_object_and_json_cut_by_length(llm):
    for output in answers(llm, "A JSON object:", {"json_object": True}, n=3, max_tokens=60):
        if output.finish_reason == "stop":
            assert isinstance(json.loads(output.text), dict)
        else:
            assert output.text.startswith("{")
            assert len(output.token_ids) == 60


def test_stop_strings_go_before_the_grammar(llm):
    (output,) = answers(llm, "A list:", {"regex": "[a-z]{2}(, [a-z]{2}){5}"}, stop=[","])
    assert re.fullmatch("[a-z]{2}", output.text)
    assert output.stop_reason == ","


def test_min_tokens_and_ignore_eos_go_on_where_the_grammar_can(llm):
    """`(ab)*` is satisfied all the time and never complete."""
    (output,) = answers(llm, "abab", {"regex": "(ab)*"}, ignore_eos=True, max_tokens=15)
    assert output.finish_reason == "length"
    (output,) = answers(llm, "abab", {"regex": "(ab)*"}, min_tokens=9, max_tokens=15)
    assert len(output.token_ids) >= 9
    assert re.fullmatch("(ab)*a?", output.text)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(llm):
    """The cache holds a part of the batch only, so some are preempted and computed again."""
    structured = [StructuredOutputsParams(**case.values[0]) for case in CASES[:5]]
    params = [
        SamplingParams(
            seed=index,
            max_tokens=60,
            n=1 + index % 2,
            ignore_eos=index % 3 == 0,
            structured_outputs=structured[index % 5] if index % 3 else None,
        )
        for index in range(12)
    ]
    prompts = [f"Number {index} is:" for index in range(12)]
    together = llm.generate(prompts, params, use_tqdm=False)
    assert llm.get_stats().num_preemptions > 0
    for index in (0, 1, 4, 7, 11):
        (alone,) = llm.generate([prompts[index]], params[index], use_tqdm=False)
        assert [answer.token_ids for answer in alone.outputs] == [
            answer.token_ids for answer in together[index].outputs
        ]


def test_best_of_chooses_among_answers_of_the_grammar(llm):
    (output,) = answers(llm, "Yes or no?", {"choice": ["yes", "no"]}, n=1, best_of=4)
    assert output.text in ("yes", "no")


@pytest.mark.parametrize(
    ("structured", "param"),
    [
        ({"json": {"$ref": "#"}}, "json"),
        ({"json": {"type": "string", "minLength": 10**9}}, "json.minLength"),
        ({"regex": "(?=a)a"}, "regex"),
        ({"grammar": "start: nowhere"}, "grammar"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_anything_runs(llm, structured, param):
    with pytest.raises(InvalidRequestError) as caught:
        answers(llm, "x", structured)
    assert caught.value.param == f"structured_outputs.{param}"
    assert answers(llm, "x", {"regex": "ab"})[0].text == "ab"


async def collect(stream):
    texts, ids = [], []
    async for output in stream:
        texts.append(output.outputs[0].text)
        ids += output.outputs[0].token_ids
    return texts, ids, output.outputs[0].finish_reason


async def serve(config):
    engine = await start_async_engine_in_process(config)
    try:

        def params(**structured):
            return SamplingParams(
                seed=5,
                max_tokens=60,
                output_kind=RequestOutputKind.DELTA,
                structured_outputs=StructuredOutputsParams(**structured) if structured else None,
            )

        hostile = {
            "json": {"type": "string", "allOf": [{"pattern": f".*{a}{a}.*"} for a in "abcdefghijklmnopqrstuvwxyz"]}
        }
        streams = [
            engine.submit("The data:", params(json=SCHEMA, disable_any_whitespace=True)),
            engine.submit("Once", params()),
            engine.submit("x", params(**hostile)),
            engine.submit("x", params(regex="(?<=a)b")),
        ]
        opened = await asyncio.gather(*streams, return_exceptions=True)
        return opened[2:], await asyncio.gather(*map(collect, opened[:2])), engine.num_requests
    finally:
        await engine.close()


def test_a_stream_ends_in_a_whole_answer_while_hostile_grammars_are_refused(llm):
    """Checked in other processes: what takes too long there is ended and never reaches the engine."""
    config = EngineConfig.from_options(**OPTIONS, kv_cache_memory_bytes=64 << 20)
    refused, ((texts, ids, reason), free), num_left = asyncio.run(serve(config))
    assert all(isinstance(error, InvalidRequestError) for error in refused)
    assert "takes more than 2 s" in refused[0].message
    assert "look-around" in refused[1].message
    assert reason == "stop"
    assert is_of_schema("".join(texts))
    assert len(free[1]) == 60
    assert num_left == 0
    (offline,) = answers(llm, "The data:", {"json": SCHEMA, "disable_any_whitespace": True}, max_tokens=60)
    assert ids == offline.token_ids
