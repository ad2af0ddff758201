"""Prompts of every dataset."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from quire.entrypoints.cli.bench.datasets import BenchPrompt, make_prompts
from quire.entrypoints.cli.bench.options import DatasetOptions, LoadOptions, TargetOptions
from quire.errors import ConfigError


class WordCounter:
    """One token per word."""

    vocab_size = 5000

    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))


def make(
    options: DatasetOptions, count: int = 20, *, as_text: bool = False, tokenizer: WordCounter | None = None
) -> list[BenchPrompt]:
    return make_prompts(options, count, random.Random(3), as_text=as_text, tokenizer=tokenizer)


def test_random_ids() -> None:
    prompts = make(DatasetOptions(input_len=50, output_len=9, vocab_size=4000))
    assert [(len(prompt.prompt), prompt.num_input_tokens, prompt.max_tokens) for prompt in prompts] == [
        (50, 50, 9)
    ] * 20
    assert all(1000 <= token_id < 4000 for prompt in prompts for token_id in prompt.prompt)  # type: ignore[operator]
    assert len({tuple(prompt.prompt) for prompt in prompts}) == 20


def test_the_seed_decides() -> None:
    options = DatasetOptions(input_len=8)
    assert make(options) == make(options)


def test_lengths_vary_by_the_ratio() -> None:
    prompts = make(DatasetOptions(input_len=100, output_len=10, random_range_ratio=0.5), 300)
    assert {prompt.max_tokens for prompt in prompts} == set(range(5, 16))
    lengths = {prompt.num_input_tokens for prompt in prompts}
    assert min(lengths) >= 50
    assert max(lengths) <= 150
    assert len(lengths) > 50


def test_a_common_prefix() -> None:
    prompts = make(DatasetOptions(input_len=5, random_prefix_len=3))
    assert len({tuple(prompt.prompt[:3]) for prompt in prompts}) == 1
    assert {prompt.num_input_tokens for prompt in prompts} == {8}


def test_ids_come_from_the_tokenizer_and_small_vocabularies_are_used_whole() -> None:
    prompts = make(DatasetOptions(input_len=200), tokenizer=WordCounter())
    largest = max(token_id for prompt in prompts for token_id in prompt.prompt)  # type: ignore[type-var]
    assert 4900 < int(largest) < 5000
    small = make(DatasetOptions(input_len=200, vocab_size=20))
    assert {token_id for prompt in small for token_id in prompt.prompt} == set(range(20))


def test_texts_have_one_word_per_token() -> None:
    prompts = make(DatasetOptions(input_len=7), as_text=True)
    assert all(isinstance(prompt.prompt, str) and len(prompt.prompt.split()) == 7 for prompt in prompts)


def test_repeated_prefixes() -> None:
    options = DatasetOptions(
        dataset_name="prefix_repetition",
        prefix_repetition_prefix_len=6,
        prefix_repetition_suffix_len=4,
        prefix_repetition_num_prefixes=3,
    )
    prompts = make(options, 30)
    prefixes = [tuple(prompt.prompt[:6]) for prompt in prompts]
    assert len(set(prefixes)) == 3
    assert all(prefixes.count(prefix) == 10 for prefix in prefixes)
    assert len({tuple(prompt.prompt) for prompt in prompts}) == 30
    assert {(prompt.num_input_tokens, prompt.max_tokens) for prompt in prompts} == {(10, 128)}


def test_sharegpt(tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    usable = {"conversations": [{"from": "human", "value": "one two three"}, {"from": "gpt", "value": "four five"}]}
    broken: list[Any] = [{"conversations": [{"value": "alone"}]}, {}, "x", {"conversations": [{"value": 1}, {}]}]
    path.write_text(json.dumps([usable, *broken]))
    options = DatasetOptions(dataset_name="sharegpt", dataset_path=str(path))
    assert make(options, 2, tokenizer=WordCounter()) == [BenchPrompt("one two three", 3, 2)] * 2
    fixed = DatasetOptions(dataset_name="sharegpt", dataset_path=str(path), output_len=50)
    assert make(fixed, 1) == [BenchPrompt("one two three", 4, 50)]
    with pytest.raises(ConfigError, match="sharegpt needs --output-len, or --tokenizer"):
        make(options)


def test_custom(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a b"}\n\n{"prompt": "c", "output_tokens": 7}\n')
    prompts = make(DatasetOptions(dataset_name="custom", dataset_path=str(path)), 4, tokenizer=WordCounter())
    assert sorted((str(prompt.prompt), prompt.max_tokens) for prompt in prompts) == [
        ("a b", 128),
        ("a b", 128),
        ("c", 7),
        ("c", 7),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("custom", "{", "file:1 is not JSON"),
        ("custom", '{"text": 1}', 'file:1 must be an object with "prompt"'),
        ("custom", '{"prompt": "x", "output_tokens": 0}', "output_tokens must be an integer above 0, got 0"),
        ("custom", "\n", "holds no prompt"),
        ("sharegpt", "{}", "must hold a list of conversations"),
        ("sharegpt", "[", "is not JSON"),
        ("sharegpt", "[]", "holds no prompt"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        make(DatasetOptions(dataset_name=name, dataset_path=str(path), output_len=5))
    assert message in caught.value.message


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        make(DatasetOptions(dataset_name="sharegpt", dataset_path="/no/such/file", output_len=5))


@pytest.mark.parametrize(
    ("option_class", "name", "value"),
    [
        (DatasetOptions, "input_len", 0),
        (DatasetOptions, "output_len", 0),
        (DatasetOptions, "random_range_ratio", 1.0),
        (DatasetOptions, "prefix_repetition_num_prefixes", 0),
        (LoadOptions, "num_prompts", 0),
        (LoadOptions, "request_rate", 0.0),
        (LoadOptions, "request_rate", float("nan")),
        (LoadOptions, "burstiness", -1.0),
        (LoadOptions, "max_concurrency", 0),
        (TargetOptions, "port", 0),
        (TargetOptions, "request_timeout", 0.0),
    ],
)
def test_refused_options(option_class: Any, name: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        option_class(**{name: value})
    assert caught.value.param == name
