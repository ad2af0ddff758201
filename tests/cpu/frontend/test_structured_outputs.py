"""What each kind of structured output accepts, by the grammar that it is turned into."""

import json

import pytest

from quire.engine.grammar import compile_grammar, make_tokenizer
from quire.errors import InvalidRequestError
from quire.frontend.json_schema import close_objects
from quire.frontend.structured_outputs import lower
from quire.testing.vocabulary import make_vocabulary
from quire.types.structured_outputs import StructuredOutputsParams

CONTROL = frozenset({"<a>", "<b>"})
PERSON = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FUNCTIONS = {
    "triggers": ["<f="],
    "structures": [
        {"begin": "<f=x>", "schema": PERSON, "end": "</f>"},
        {"begin": "<f=y>", "schema": {"type": "null"}, "end": "</f>"},
    ],
}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(make_vocabulary())


def accepts(tokenizer, text, **structured):
    """Whether `text` is a whole answer."""
    matcher = compile_grammar(tokenizer, lower(StructuredOutputsParams(**structured), CONTROL))
    tokens = tokenizer.tokenize_str(text, parse_special=True)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def form(kind, **fields):
    return {"type": kind, **fields}


def tag(begin, content, end):
    return {"begin": begin, "content": content, "end": end}


X = form("const_string", value="x")
DIGITS = form("regex", pattern="[0-9]+")


@pytest.mark.parametrize(
    ("structured", "right", "wrong"),
    [
        ({"json": PERSON}, ['{"a":1}', '{ "a" :\n\t1}', '{"a":1,"b":[]}'], ["{}", '{"a":""}', ' {"a":1}']),
        ({"json": PERSON, "disable_any_whitespace": True}, ['{"a":1}'], ['{"a": 1}']),
        ({"json": PERSON, "whitespace_pattern": " {2}"}, ['{"a":  1}', '{"a":1}'], ['{"a": 1}']),
        ({"json": PERSON, "disable_additional_properties": True}, ['{"a":1}'], ['{"a":1,"b":2}']),
        ({"json": PERSON}, ['{"a":' + " " * 40 + "1}"], ['{"a":' + " " * 41 + "1}"]),
        ({"json_object": True}, ["{}", '{"x":[1,{}]}'], ["[]", "1"]),
        ({"regex": r"\d+(,\w)?"}, ["12", "1,é"], ["", "x", "٣"]),
        ({"regex": "^a/b$"}, ["a/b"], ["a/bc"]),
        ({"regex": ""}, [""], ["a"]),
        (
            {"choice": ["yes", 'say "no"\n\\', "\x01\x7f", "é😀", "a/b"]},
            ["yes", 'say "no"\n\\', "\x01\x7f", "é😀", "a/b"],
            ["", "y", "yesyes", "no"],
        ),
        ({"grammar": 'start: "<" x ">"\nx: /[ab]+/'}, ["<ab>"], ["<>"]),
        (
            {"structural_tag": FUNCTIONS},
            ["text", "", 'a <f=x>{"a":1}</f> b <f=y>null</f>', "1 < 2"],
            ["<f=", "<f=z>", "<f=x>{}</f>", "<f=y>null"],
        ),
        (
            {"structural_tag": {"type": "structural_tag", "format": form("tag", **tag("<a>", DIGITS, "<b>"))}},
            ["<a>12<b>"],
            ["<a><b>", "12", "<a>12"],
        ),
        (
            {
                "structural_tag": {
                    "type": "structural_tag",
                    "format": form(
                        "sequence",
                        elements=[
                            form("tag", **tag("<t>", form("any_text"), "</t>")),
                            form(
                                "or",
                                elements=[form("const_string", value="x"), form("json_schema", json_schema=PERSON)],
                            ),
                            form("any_text"),
                        ],
                    ),
                }
            },
            ["<t>some\n<text</t>x", '<t></t>{"a":1} and so on'],
            ["x", "<t></t>y"],
        ),
        (
            {
                "structural_tag": {
                    "type": "structural_tag",
                    "format": form(
                        "tags_with_separator", tags=[tag("(", DIGITS, ")"), tag("[", DIGITS, "]")], separator="; "
                    ),
                }
            },
            ["", "(1)", "(1); [23]"],
            ["(1);", "(1)[2]"],
        ),
        (
            {
                "structural_tag": {
                    "type": "structural_tag",
                    "format": form(
                        "triggered_tags",
                        triggers=["<a>", "#"],
                        tags=[tag("<a>", DIGITS, "."), tag("#!", DIGITS, ".")],
                        at_least_one=True,
                        stop_after_first=True,
                    ),
                }
            },
            ["so <a>1.", "well #!22."],
            ["", "text", "<a>1. more", "#1."],
        ),
    ],
)
def test_what_is_accepted(tokenizer, structured, right, wrong):
    assert [text for text in right if not accepts(tokenizer, text, **structured)] == []
    assert [text for text in wrong if accepts(tokenizer, text, **structured)] == []


@pytest.mark.parametrize(
    ("structured", "param"),
    [
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"grammar": "start: x\nx[temperature=0.5]: /a/"}, "grammar"),
        ({"json": {"properties": {"a": {"allOf": [{"minItems": 10**7}]}}}}, "json.properties.a.allOf[0].minItems"),
        ({"structural_tag": {"type": "structural_tag"}}, "structural_tag.format"),
        ({"structural_tag": {"triggers": [""], "structures": [{}]}}, "structural_tag.triggers"),
        (
            {"structural_tag": {"triggers": ["<"], "structures": [{"begin": "x", "end": ""}]}},
            "structural_tag.tags[0].begin",
        ),
        ({"structural_tag": {"triggers": ["<"], "structures": ["x"]}}, "structural_tag.structures[0]"),
        ({"structural_tag": {"format": form("grammar", grammar="x")}}, "structural_tag.format.type"),
        (
            {"structural_tag": {"format": form("sequence", elements=[form("any_text"), form("any_text")])}},
            "structural_tag.format.elements[0]",
        ),
    ],
)
def test_what_is_refused_without_compiling(structured, param):
    with pytest.raises(InvalidRequestError) as caught:
        lower(StructuredOutputsParams(**structured))
    assert caught.value.param == f"structured_outputs.{param}"


def test_objects_are_closed_where_the_schema_leaves_it_open():
    open_object = {"properties": {"a": {"properties": {"b": True}}}}
    schema = {
        "allOf": [open_object],
        "anyOf": [open_object],
        "$defs": {"d": {"properties": {}, "additionalProperties": True}},
        "items": open_object,
    }
    closed = close_objects(schema)
    assert closed["allOf"] == [open_object]
    inner = {"properties": {"b": True}, "additionalProperties": False}
    assert closed["items"] == closed["anyOf"][0] == {"properties": {"a": inner}, "additionalProperties": False}
    assert closed["$defs"] == schema["$defs"]
    assert "additionalProperties" not in json.dumps(schema["items"])
