import msgspec
import pytest

from quire.errors import InvalidRequestError, ParameterError
from quire.types.sampling import SamplingParams
from quire.types.structured_outputs import KINDS, MAX_SCHEMA_DEPTH, StructuredOutputsParams, nesting_depth


def nested(depth):
    schema = {}
    for _ in range(depth - 1):
        schema = {"a": schema}
    return schema


@pytest.mark.parametrize(
    "values",
    [
        {"json": {"type": "object"}},
        {"json": '{"type": "object"}'},
        {"json": nested(MAX_SCHEMA_DEPTH)},
        {"regex": ""},
        {"choice": ["a", "b"]},
        {"grammar": 'start: "a"'},
        {"json_object": True, "disable_any_whitespace": True},
        {"structural_tag": {"triggers": ["<"]}},
        {"json_object": True, "whitespace_pattern": " ?"},
    ],
)
def test_accepted(values):
    params = StructuredOutputsParams(**values)
    assert params.kind == next(iter(values))
    sampling = SamplingParams(structured_outputs=params)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=SamplingParams) == sampling


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({}, ""),
        ({"regex": "a", "choice": ["a"]}, ".choice"),
        ({"json": {}}, ".json"),
        ({"json": "{"}, ".json"),
        ({"json": "[1]"}, ".json"),
        ({"json": "[" * 100_000}, ".json"),
        ({"json": nested(MAX_SCHEMA_DEPTH + 1)}, ".json"),
        ({"json": {"a": object()}}, ".json"),
        ({"json": {"a": "x" * 300_000}}, ".json"),
        ({"json_object": False}, ".json_object"),
        ({"regex": "a\0"}, ".regex"),
        ({"regex": 5}, ".regex"),
        ({"regex": "a" * 300_000}, ".regex"),
        ({"choice": []}, ".choice"),
        ({"choice": "abc"}, ".choice"),
        ({"choice": ["a", ""]}, ".choice"),
        ({"choice": [1]}, ".choice"),
        ({"choice": ["a"] * 10_001}, ".choice"),
        ({"choice": ["a" * 1000 + str(index) for index in range(300)]}, ".choice"),
        ({"grammar": "  "}, ".grammar"),
        ({"structural_tag": {}}, ".structural_tag"),
        ({"json_object": True, "disable_any_whitespace": 1}, ".disable_any_whitespace"),
        ({"json_object": True, "whitespace_pattern": ""}, ".whitespace_pattern"),
        ({"json_object": True, "whitespace_pattern": "\0"}, ".whitespace_pattern"),
        (
            {"json_object": True, "whitespace_pattern": " ", "disable_any_whitespace": True},
            ".whitespace_pattern",
        ),
    ],
)
def test_refused(values, param):
    with pytest.raises(InvalidRequestError) as caught:
        StructuredOutputsParams(**values)
    assert caught.value.param == f"structured_outputs{param}"


def test_a_choice_is_listed_once():
    assert StructuredOutputsParams(choice=("a", "b", "a")).choice == ["a", "b"]


def test_sampling_params_take_nothing_else():
    with pytest.raises(ParameterError, match="structured_outputs must be"):
        SamplingParams(structured_outputs={"json_object": True})


def test_depth_is_counted_without_recursion():
    cycle = {}
    cycle["a"] = [cycle]
    assert nesting_depth(cycle, 64) == 65
    assert nesting_depth(5, 64) == 0
    assert nesting_depth({"a": [], "b": {"c": [{}]}}, 64) == 4
    assert set(KINDS) <= set(StructuredOutputsParams.__dataclass_fields__)
