"""Prompts to measure with."""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quire.entrypoints.cli.bench.options import DatasetOptions
from quire.entrypoints.cli.prompt_file import numbered_lines
from quire.errors import ConfigError

DEFAULT_OUTPUT_LEN = 128
FIRST_ORDINARY_TOKEN = 1000
"""Below it vocabularies keep their special tokens, which some servers refuse in prompts."""

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city name team minute idea body information back parent face"
)
_WORDS = tuple(_TEXT.split())


class TokenCounter(Protocol):
    """What datasets need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One request to make.

    Attributes:
        prompt: A text, or token ids.
        num_input_tokens: As far as it is known before the server counts them.
        max_tokens: Length of the answer.
    """

    prompt: str | list[int]
    num_input_tokens: int
    max_tokens: int


def make_prompts(
    options: DatasetOptions, count: int, rng: random.Random, *, as_text: bool, tokenizer: TokenCounter | None
) -> list[BenchPrompt]:
    """Draws prompts from a dataset.

    Args:
        options: Which dataset, and its lengths.
        count: How many prompts.
        rng: Where random prompts and the choice among recorded ones come from; modified.
        as_text: Random prompts are made of words, one token each in most vocabularies, instead of token ids.
        tokenizer: Counts the tokens of recorded texts; None where there is none.

    Raises:
        ConfigError: The dataset's file cannot be used.
    """
    pieces = _Words(rng) if as_text else _TokenIds(rng, tokenizer.vocab_size if tokenizer else options.vocab_size)
    if options.dataset_name == "random":
        return _random_prompts(options, count, rng, pieces)
    if options.dataset_name == "prefix_repetition":
        return _prefix_repetition(options, count, rng, pieces)
    assert options.dataset_path is not None
    path = Path(options.dataset_path)
    if options.dataset_name == "sharegpt":
        recorded = list(_read_sharegpt(path, options.output_len, tokenizer))
    else:
        recorded = list(_read_custom(path, options.output_len, tokenizer))
    return _choose(recorded, count, rng, path)


class _TokenIds:
    """Makes prompts of random token ids."""

    def __init__(self, rng: random.Random, vocab_size: int) -> None:
        self._rng = rng
        self._vocab_size = vocab_size

    def draw(self, length: int) -> list[Any]:
        low = FIRST_ORDINARY_TOKEN if self._vocab_size > 2 * FIRST_ORDINARY_TOKEN else 0
        return [self._rng.randrange(low, self._vocab_size) for _ in range(length)]

    def join(self, pieces: list[Any]) -> str | list[int]:
        return pieces


class _Words:
    """Makes prompts of random words."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def draw(self, length: int) -> list[Any]:
        return self._rng.choices(_WORDS, k=length)

    def join(self, pieces: list[Any]) -> str | list[int]:
        return " ".join(pieces)


def _random_prompts(
    options: DatasetOptions, count: int, rng: random.Random, pieces: _TokenIds | _Words
) -> list[BenchPrompt]:
    prefix = pieces.draw(options.random_prefix_len)
    prompts = []
    for _ in range(count):
        body = pieces.draw(_vary(options.input_len, options.random_range_ratio, rng))
        max_tokens = _vary(options.output_len or DEFAULT_OUTPUT_LEN, options.random_range_ratio, rng)
        prompts.append(BenchPrompt(pieces.join(prefix + body), len(prefix) + len(body), max_tokens))
    return prompts


def _prefix_repetition(
    options: DatasetOptions, count: int, rng: random.Random, pieces: _TokenIds | _Words
) -> list[BenchPrompt]:
    """Prompts that begin with one of a few prefixes, in random order."""
    num_prefixes = options.prefix_repetition_num_prefixes
    prefixes = [pieces.draw(options.prefix_repetition_prefix_len) for _ in range(num_prefixes)]
    max_tokens = options.output_len or DEFAULT_OUTPUT_LEN
    prompts = []
    for number in range(count):
        whole = prefixes[number % num_prefixes] + pieces.draw(options.prefix_repetition_suffix_len)
        prompts.append(BenchPrompt(pieces.join(whole), len(whole), max_tokens))
    rng.shuffle(prompts)
    return prompts


def _vary(length: int, ratio: float, rng: random.Random) -> int:
    low, high = math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))
    return rng.randint(max(1, low), high)


def _read_sharegpt(path: Path, output_len: int | None, tokenizer: TokenCounter | None) -> Iterator[BenchPrompt]:
    """First question and answer of every recorded conversation that has both."""
    if output_len is None and tokenizer is None:
        raise ConfigError(
            "sharegpt needs --output-len, or --tokenizer to count the recorded answers", param="output_len"
        )
    count_tokens = _counter(tokenizer)
    for conversation in _load_json_list(path):
        turns = conversation.get("conversations") if isinstance(conversation, dict) else None
        texts = [str(turn.get("value") or "") for turn in turns or [] if isinstance(turn, dict)]
        if len(texts) >= 2 and texts[0] and texts[1]:
            max_tokens = output_len or count_tokens(texts[1])
            yield BenchPrompt(texts[0], count_tokens(texts[0]), max(1, max_tokens))


def _read_custom(path: Path, output_len: int | None, tokenizer: TokenCounter | None) -> Iterator[BenchPrompt]:
    count_tokens = _counter(tokenizer)
    for number, line in numbered_lines(path):
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number} is not JSON: {error}") from error
        prompt = values.get("prompt") if isinstance(values, dict) else None
        if not isinstance(prompt, str) or not prompt:
            raise ConfigError(f'{path}:{number} must be an object with "prompt", a text')
        own_length = values.get("output_tokens")
        if own_length is not None and (type(own_length) is not int or own_length < 1):
            raise ConfigError(f"{path}:{number}: output_tokens must be an integer above 0, got {own_length!r}")
        yield BenchPrompt(prompt, count_tokens(prompt), output_len or own_length or DEFAULT_OUTPUT_LEN)


def _counter(tokenizer: TokenCounter | None) -> Callable[[str], int]:
    """Counts tokens; without a tokenizer it guesses four characters each, until the server reports them."""
    if tokenizer is None:
        return lambda text: math.ceil(len(text) / 4)
    return lambda text: len(tokenizer.encode(text))


def _load_json_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", param="dataset_path") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}", param="dataset_path") from error
    if not isinstance(content, list):
        raise ConfigError(f"{path} must hold a list of conversations", param="dataset_path")
    return content


def _choose(recorded: list[BenchPrompt], count: int, rng: random.Random, path: Path) -> list[BenchPrompt]:
    """`count` of the recorded prompts in random order; all of them again and again where they are too few."""
    if not recorded:
        raise ConfigError(f"{path} holds no prompt", param="dataset_path")
    order: list[BenchPrompt] = []
    while len(order) < count:
        order += rng.sample(recorded, len(recorded))
    return order[:count]
