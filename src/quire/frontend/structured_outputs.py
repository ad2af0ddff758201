"""What an answer must look like, as one grammar in the words of llguidance."""

import json
import re
from collections.abc import Collection, Iterable
from typing import Any

from llguidance import LLMatcher, regex_to_lark

from quire.engine.grammar import GrammarVocabulary
from quire.errors import InvalidRequestError
from quire.frontend.json_schema import check_schema, close_objects
from quire.frontend.structural_tag import lower_structural_tag
from quire.frontend.tokenizer import Tokenizer
from quire.types.structured_outputs import StructuredOutputsParams

WHITESPACE = r"[ \n\r\t]{1,40}"
"""Between the parts of JSON, where nothing else is asked for: enough to indent, too little to go on for ever."""

_OTHER_NOTATION = re.compile(r"::=")
_TEMPERATURE = re.compile(r"\[[^\]\n]*\btemperature\s*=")


def grammar_vocabulary(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Iterable[int]) -> GrammarVocabulary:
    """What grammars must know of a model's tokens.

    Args:
        tokenizer: The model's.
        vocab_size: Width of its logits.
        eos_token_ids: Tokens that end an answer, beside the tokenizer's.
    """
    known = dict.fromkeys([*tokenizer.eos_token_ids, *eos_token_ids])
    return GrammarVocabulary(
        tokenizer_json=tokenizer.backend.to_str(),
        vocab_size=vocab_size,
        eos_token_ids=tuple(token_id for token_id in known if 0 <= token_id < vocab_size),
    )


def lower(params: StructuredOutputsParams, special_tokens: Collection[str] = frozenset()) -> str:
    """One grammar for any kind of structured output: Lark, or the JSON of a list of grammars.

    Args:
        params: What the answer must look like.
        special_tokens: Texts of the control tokens, which structural tags may name.

    Raises:
        InvalidRequestError: What can be seen to be wrong without compiling it.
    """
    if params.kind == "json":
        return _lower_schema(_parsed(params.json), params, "structured_outputs.json")
    if params.kind == "json_object":
        return _lower_schema({"type": "object"}, params, "structured_outputs.json_object")
    if params.kind == "regex":
        # Of several meanings of \d the narrow one, which every reader of the answer shares.
        return f"start: /{regex_to_lark(params.regex or '', 'd')}/"
    if params.kind == "choice":
        return "start: CHOICE\nCHOICE: " + " | ".join(map(terminal, params.choice or ()))
    if params.kind == "grammar":
        return _check_lark(params.grammar or "")
    tag = _parsed(params.structural_tag)
    return lower_structural_tag(tag, special_tokens, lambda schema, path: json_options(schema, params, path))


def json_options(schema: Any, params: StructuredOutputsParams, path: str) -> Any:
    """A schema with what the request says about whitespace and additional properties.

    Raises:
        InvalidRequestError: The schema names a value that no answer could hold.
    """
    check_schema(schema, path)
    if not isinstance(schema, dict):
        return schema
    if params.disable_additional_properties:
        schema = close_objects(schema)
    own = schema.get("x-guidance")
    options = {"whitespace_pattern": WHITESPACE, **(own if isinstance(own, dict) else {})}
    if params.whitespace_pattern is not None:
        options["whitespace_pattern"] = params.whitespace_pattern
    if params.disable_any_whitespace:
        options.pop("whitespace_pattern")
        options["whitespace_flexible"] = False
    return {**schema, "x-guidance": options}


def terminal(text: str) -> str:
    """A text as a terminal in Lark. A text with control characters becomes a regular expression."""
    if all(character.isprintable() or character in "\n\r\t" for character in text):
        return json.dumps(text, ensure_ascii=False)
    return "/" + "".join(f"\\x{{{ord(character):x}}}" for character in text) + "/"


def _lower_schema(schema: Any, params: StructuredOutputsParams, path: str) -> str:
    return str(LLMatcher.grammar_from_json_schema(json.dumps(json_options(schema, params, path))))


def _parsed(document: str | dict[str, Any] | None) -> Any:
    return json.loads(document) if isinstance(document, str) else document


def _check_lark(grammar: str) -> str:
    path = "structured_outputs.grammar"
    if _OTHER_NOTATION.search(grammar) and not grammar.lstrip().startswith("{"):
        raise InvalidRequestError(
            "structured_outputs.grammar looks like GBNF or EBNF, and Lark is read here",
            hint='write "start: item+" for "root ::= item+", and begin names of regular expressions in capitals',
            param=path,
        )
    if _TEMPERATURE.search(grammar):
        raise InvalidRequestError(
            "structured_outputs.grammar sets a temperature for a rule, which is not supported", param=path
        )
    return grammar
