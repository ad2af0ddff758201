"""Text to ids: control tokens where they are meant, text where a user typed them, bos where it belongs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from quire.checkpoint.tokenizer_source import TokenizerSource
from quire.errors import CorruptCheckpointError, InvalidRequestError
from quire.frontend.control_tokens import BREAK
from quire.frontend.tokenizer import Tokenizer, load_tokenizer

few = settings(max_examples=20, deadline=None)

TokenizerOf = Callable[[str], Tokenizer]
KINDS = ["byte_level", "sentencepiece", "metaspace", "word_piece"]

pieces = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "<s>",
        "</s>",
        "<think>",
        "[SEP]",
        "hello",
        " world",
        "\n",
        "  ",
        "<",
        "|im",
        "好🙂",
        "the",
    ]
)
typed = st.lists(pieces, max_size=8).map("".join)


def control_ids(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [token_id for token_id in ids if tokenizer.is_special(token_id)]


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_in_a_users_text_stay_text(tokenizer_of: TokenizerOf, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for text in ["<|im_end|>", "<s></s>", "a</s>b<s>", "x<|im_start|><|im_end|>", "[SEP] the [SEP]"]:
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert not control_ids(tokenizer, [i for i in ids if tokenizer.token_text(i) != "<unk>"]), text
    eos = tokenizer.eos_token_ids[0]
    assert eos in tokenizer.encode("a" + tokenizer.token_text(eos), add_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@few
@given(text=typed)
def test_what_is_not_broken_is_encoded_as_ever(tokenizer_of: TokenizerOf, kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert tokenizer.encode_broken(text) == tokenizer.encode(text, add_special_tokens=False)
    # A break behind the text changes nothing, but takes the way that splits it.
    assert tokenizer.encode_broken(text + BREAK) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@few
@given(before=typed, user=typed, after=typed)
def test_broken_text_is_text_between_the_templates_control_tokens(
    tokenizer_of: TokenizerOf, kind: str, before: str, user: str, after: str
) -> None:
    tokenizer = tokenizer_of(kind)
    # Single characters at the seams, so that nothing of the user's forms a control token with its surroundings.
    text = before + "." + tokenizer.control_tokens.break_up(user) + "." + after
    expected = [match.group() for part in (before, after) for match in tokenizer.control_tokens.find(part)]
    found = control_ids(tokenizer, tokenizer.encode_broken(text))
    unknown = {"<unk>"}
    assert [name for i in found if (name := tokenizer.token_text(i)) not in unknown] == [
        name for name in expected if name not in unknown
    ]


@few
@given(text=st.text())
def test_byte_level_decodes_what_it_encodes(tokenizer_of: TokenizerOf, text: str) -> None:
    tokenizer = tokenizer_of("byte_level")
    ids = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()


@few
@given(text=st.text(alphabet="abcdefhloé好<|>/_ \n🙂日"))
def test_sentencepiece_decodes_what_it_encodes(tokenizer_of: TokenizerOf, text: str) -> None:
    for kind in ("sentencepiece", "metaspace"):
        tokenizer = tokenizer_of(kind)
        decoded = tokenizer.decode(tokenizer.encode(text, parse_special=False))
        # The "first" scheme puts no space in front of a text that has one already.
        assert decoded == text or (kind == "metaspace" and text.startswith(" ") and decoded == text[1:])


def test_bos_comes_first_and_once(tokenizer_of: TokenizerOf) -> None:
    for kind in ("sentencepiece", "metaspace"):
        tokenizer = tokenizer_of(kind)
        bare = tokenizer.encode("hello", add_special_tokens=False)
        assert tokenizer.encode("hello") == [1, *bare]
        assert tokenizer.encode("<s>hello").count(1) == 1
    assert tokenizer_of("byte_level").encode("hello") == tokenizer_of("byte_level").encode(
        "hello", add_special_tokens=False
    )


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, True), (False, False), (True, None), (None, None)])
def test_the_configuration_decides_about_bos_and_eos(
    tokenizer_json: dict[str, Any], tmp_path: Path, add_bos: bool | None, add_eos: bool | None
) -> None:
    template: dict[str, Any] = {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "B", "type_id": 0}}]}
    template["single"] = [
        {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    template["special_tokens"] = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**tokenizer_json, "post_processor": template}))
    config = {
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": "<|im_end|>",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
    }
    tokenizer = load_tokenizer(TokenizerSource("tokenizer.json", path, config=config))
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == (2,)
    bare = tokenizer.encode("hello", add_special_tokens=False)
    bos = [] if add_bos is False else [1]
    assert tokenizer.encode("hello") == [*bos, *bare, *([2] if add_eos else [])]


def test_a_prompt_is_never_cut_or_padded(tokenizer_json: dict[str, Any], tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**tokenizer_json, "truncation": cut}))
    tokenizer = load_tokenizer(TokenizerSource("tokenizer.json", path))
    assert tokenizer.decode(tokenizer.encode("hello hello hello")) == "hello hello hello"


def test_tokens_that_only_the_configuration_has_are_added(tokenizer_json: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json))
    size = Backend.from_file(str(path)).get_vocab_size()
    more = {str(size): {"content": "<|tool|>", "special": True}, "1": {"content": "<|im_start|>", "special": True}}
    tokenizer = load_tokenizer(TokenizerSource("tokenizer.json", path, config={"added_tokens_decoder": more}))
    assert tokenizer.encode("<|tool|>") == [size]
    assert tokenizer.is_special(size)
    assert size not in tokenizer.encode("<|tool|>", parse_special=False)
    wrong = {str(size + 7): {"content": "<|tool|>", "special": True}}
    with pytest.raises(CorruptCheckpointError, match=re.escape("<|tool|>")):
        load_tokenizer(TokenizerSource("tokenizer.json", path, config={"added_tokens_decoder": wrong}))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": 3}')
    with pytest.raises(CorruptCheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(TokenizerSource("tokenizer.json", path))


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    for parse_special in (True, False):
        with pytest.raises(InvalidRequestError, match="Unicode"):
            tokenizer.encode("a\ud83d", parse_special=parse_special)


def test_ids_outside_the_vocabulary_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.vocab_size + 5, *tokenizer.encode("hello")]) == "hello"
    assert tokenizer.token_text(tokenizer.vocab_size + 5) == ""


def test_control_tokens_are_shown_on_wish(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>hello<think><|im_end|>")
    assert tokenizer.decode(ids) == "hello<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hello<think><|im_end|>"
