"""The real small model's tokenizer, built from its GGUF file, against Transformers' reading of the same file."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.checkpoint.checkpoint import open_checkpoint, small_model_path
from quire.config.model import ModelConfig
from quire.errors import CheckpointNotFoundError
from quire.frontend.chat_template import ChatTemplate
from quire.frontend.detokenizer import IncrementalDetokenizer
from quire.frontend.tokenizer import Tokenizer, load_tokenizer

TEXTS = (
    "Hello world",
    "  two  spaces\n\n\ttabs \r\n",
    "don't, you're, I'LL, 'tis",
    "naïve café, 你好世界。今日は 🙂👩‍👩‍👧 ﷽",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "def f(x):\n    return x + y  # a comment\n",
    "a" * 50 + " " * 20 + "b",
    "Der schnelle braune Fuchs — »springt« über den Hund.",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    try:
        small_model_path()
    except CheckpointNotFoundError as error:
        pytest.skip(error.message)
    return load_tokenizer(open_checkpoint(ModelConfig()).tokenizer)


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer) -> Any:
    transformers = pytest.importorskip("transformers")
    path = small_model_path()
    return transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


@pytest.mark.filterwarnings("ignore")
def test_ids_and_text_are_those_of_transformers(tokenizer: Tokenizer, reference: Any) -> None:
    for text in TEXTS:
        ids = reference(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids)


@pytest.mark.filterwarnings("ignore")
def test_a_chat_is_that_of_transformers(tokenizer: Tokenizer, reference: Any) -> None:
    source = open_checkpoint(ModelConfig()).chat_template
    assert source is not None
    template = ChatTemplate(source, named_tokens=tokenizer.named_tokens)
    messages = [{"role": "user", "content": "Hi é"}, {"role": "assistant", "content": "Hello"}]
    for chat in (messages[:1], messages, [{"role": "system", "content": "Be brief."}, *messages]):
        text = reference.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = template.encode(chat, tokenizer)
        assert prompt.text == text
        assert prompt.token_ids == reference(text)["input_ids"]


def test_each_digit_is_a_token(tokenizer: Tokenizer) -> None:
    texts = [tokenizer.token_text(token_id) for token_id in tokenizer.encode("x2024 3.5")]
    assert texts == ["x", "2", "0", "2", "4", " ", "3", ".", "5"]


def test_the_model_ends_with_its_end_token(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_text(i) for i in tokenizer.eos_token_ids] == ["<|im_end|>"]
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_tokens_come_out_as_one_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    detokenizer = IncrementalDetokenizer(tokenizer, [])
    text = "".join([detokenizer.append([token_id]) for token_id in ids]) + detokenizer.flush()
    assert text == tokenizer.decode(ids) == tokenizer.backend.decode(ids)


# The model has no tokens for some control characters and for bytes of planes that are hardly used.
@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"], max_codepoint=0xFFFF)))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(ids) == text
    assert not any(map(tokenizer.is_special, ids))
