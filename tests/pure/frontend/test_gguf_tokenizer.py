"""Tokenizers from GGUF vocabularies."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quire.checkpoint.tokenizer_source import GGUFVocabulary, TokenizerSource
from quire.errors import CorruptCheckpointError, UnsupportedModelError
from quire.frontend.gguf_tokenizer import PRE_TOKENIZERS, build_gguf_tokenizer
from quire.frontend.pieces import byte_alphabet
from quire.frontend.tokenizer import Tokenizer, load_tokenizer

VocabularyOf = Callable[..., GGUFVocabulary]

LETTERS = sorted(byte_alphabet(), key=lambda character: byte_alphabet()[character])
MERGES = ["1 2", "12 3", "123 4", "Ġ a", "a b", "Ċ Ċ", "Ġ Ġ", "! !", "! Ċ", "' s", "' S"]


def byte_vocabulary(pre: str, **changes: object) -> GGUFVocabulary:
    tokens = [*LETTERS, *(merge.replace(" ", "") for merge in MERGES), "<|end|>", "<tool>"]
    fields: dict[str, object] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "scores": [],
        "token_types": [*[1] * (len(tokens) - 2), 3, 4],
        "merges": MERGES,
        "eos_token_id": len(tokens) - 2,
    }
    return GGUFVocabulary(**{**fields, **changes})  # type: ignore[arg-type]


def load(vocabulary: GGUFVocabulary) -> Tokenizer:
    return load_tokenizer(TokenizerSource("gguf", Path("m.gguf"), read_vocabulary=lambda: vocabulary))


def cut(pre: str, text: str) -> list[str]:
    tokenizer = load(byte_vocabulary(pre))
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special_tokens=False)]


@pytest.mark.parametrize(
    ("pre", "digits"),
    [
        ("gpt-2", ["1234"]),
        ("default", ["1234"]),
        ("smollm", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("tekken", ["1", "2", "3", "4"]),
    ],
)
def test_each_pre_tokenizer_cuts_digits_its_own_way(pre: str, digits: list[str]) -> None:
    assert cut(pre, "1234") == digits


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["!!", "\n", "\n", "'", "S", " a", "b"]),
        ("llama-bpe", ["!!", "\n\n", "'S", " a", "b"]),
        ("qwen2", ["!!", "\n\n", "'S", " a", "b"]),
        ("tekken", ["!!", "\n\n", "'S", " a", "b"]),
    ],
)
def test_each_pre_tokenizer_cuts_words_its_own_way(pre: str, pieces: list[str]) -> None:
    assert cut(pre, "!!\n\n'S ab") == pieces


def test_newlines_stay_with_the_punctuation_before_them_in_llama3_only() -> None:
    assert cut("llama-bpe", "!\n") == ["!\n"]
    assert cut("gpt-2", "!\n") == ["!", "\n"]


def test_qwen2_composes_characters() -> None:
    assert load(byte_vocabulary("qwen2")).encode("e\u0301") == load(byte_vocabulary("qwen2")).encode("é")
    assert load(byte_vocabulary("gpt-2")).encode("e\u0301") != load(byte_vocabulary("gpt-2")).encode("é")


def test_an_unknown_pre_tokenizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError) as failure:
        load(byte_vocabulary("klingon"))
    assert "klingon" in failure.value.message
    assert all(name in str(failure.value.hint) for name in PRE_TOKENIZERS)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        load(byte_vocabulary("gpt-2", model="bert"))


def test_control_and_user_defined_tokens_differ() -> None:
    tokenizer = load(byte_vocabulary("gpt-2"))
    end = tokenizer.eos_token_ids[0]
    assert tokenizer.encode("<|end|>") == [end]
    assert end not in tokenizer.encode("<|end|>", parse_special=False)
    assert tokenizer.encode("<tool>", parse_special=False) == [end + 1]
    assert tokenizer.decode([end, end + 1]) == "<tool>"


def test_the_end_token_is_a_control_token_even_without_types() -> None:
    tokenizer = load(byte_vocabulary("gpt-2", token_types=[]))
    assert tokenizer.is_special(tokenizer.eos_token_ids[0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, [1]), ({"add_bos_token": False}, []), ({"add_bos_token": True}, [1])],
)
def test_llama_prompts_start_with_bos_unless_the_file_says_no(
    vocabulary_of: VocabularyOf, changes: dict[str, bool], expected: list[int]
) -> None:
    tokenizer = load(vocabulary_of(**changes))
    assert tokenizer.encode("hello") == [*expected, *tokenizer.encode("hello", add_special_tokens=False)]


def test_the_best_score_merges_first(vocabulary_of: VocabularyOf) -> None:
    tokenizer = load(vocabulary_of())
    texts = [tokenizer.token_text(i) for i in tokenizer.encode("the hello", add_special_tokens=False)]
    assert texts == [" the", " hello"]


def test_characters_outside_the_vocabulary_become_bytes(vocabulary_of: VocabularyOf) -> None:
    tokenizer = load(vocabulary_of())
    ids = tokenizer.encode("日", add_special_tokens=False)
    assert [tokenizer.token_bytes(i) for i in ids] == [b" ", b"\xe6", b"\x97", b"\xa5"]


def test_no_space_in_front_where_the_file_says_so(vocabulary_of: VocabularyOf) -> None:
    tokenizer = load(vocabulary_of(add_space_prefix=False))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"
    assert tokenizer.token_text(tokenizer.encode("hello", add_special_tokens=False)[0]) == "hello"


@pytest.mark.parametrize(
    "changes",
    [{"merges": ["a"]}, {"merges": ["nosuch token"]}, {"scores": [1.0]}, {"token_types": [1]}],
)
def test_fields_that_contradict_each_other_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"m\.gguf"):
        build_gguf_tokenizer(byte_vocabulary("gpt-2", **changes), source="m.gguf")
