"""Tools, and a small vocabulary of bytes and markers to try grammars on."""

import functools
import random
from collections.abc import Iterable

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from quire.frontend.answer.tools import FunctionTool
from quire.frontend.pieces import byte_alphabet

END = "<|end|>"
_CLOSING = '"}]),<\n'
_NUM_ASCII = 94
"""Tokens of the visible characters of ASCII, which come first."""

WEATHER = FunctionTool(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["celsius", "kelvin"]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}, "maxItems": 2},
            "exact": {"type": "boolean"},
            "note": {"type": ["string", "null"]},
        },
        "required": ["city", "days"],
        "$defs": {"Tag": {"type": "string", "enum": ["wind", "rain"]}},
    },
)
NOW = FunctionTool("now")
TOOLS = (WEATHER, NOW)


class SmallVocabulary:
    """All bytes, an end and some markers, each as one token."""

    def __init__(self, markers: Iterable[str]) -> None:
        self.tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(byte_alphabet())}, merges=[]))
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer.add_tokens([AddedToken(text, special=True) for text in (END, *markers)])
        self.end = self.tokenizer.token_to_id(END)
        self._closing = set(self.ids(_CLOSING))
        self.guide = LLTokenizer(self.tokenizer.to_str(), eos_token=self.end)
        self.added_tokens = {text: self.tokenizer.token_to_id(text) for text in markers}

    def matcher(self, grammar: str) -> LLMatcher:
        """The grammar, at its beginning."""
        matcher = LLMatcher(self.guide, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def allowed(self, matcher: LLMatcher) -> list[int]:
        """The tokens that may come next."""
        mask = matcher.compute_bitmask()
        return [i for i in range(self.tokenizer.get_vocab_size()) if mask[i // 8] >> (i % 8) & 1]

    def ids(self, text: str) -> list[int]:
        """Its tokens."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def text(self, ids: list[int]) -> str:
        """What they stand for, without the end."""
        return str(self.tokenizer.decode([i for i in ids if i != self.end], skip_special_tokens=False))

    def accepts(self, grammar: str, text: str) -> bool:
        """Whether an answer may be exactly this text."""
        matcher = self.matcher(grammar)
        return matcher.validate_tokens([*self.ids(text), self.end]) == len(self.ids(text)) + 1

    def _choose(self, allowed: list[int], draw: random.Random) -> int:
        """One of the allowed tokens: often one that ends something, otherwise a character of ASCII."""
        closing = [i for i in allowed if i > self.end or i in self._closing]
        if closing and draw.random() < 0.4:
            return draw.choice(closing)
        others = [i for i in allowed if i != self.end]
        return draw.choice([i for i in others if i < _NUM_ASCII] or others or [self.end])

    def walk(self, grammar: str, goals: list[str], seed: int, max_tokens: int = 800) -> str | None:
        """A random text that the grammar accepts; None if it has not come to an end after `max_tokens`.

        From time to time one of `goals` is tried: a walk would rarely leave a free text without.
        """
        draw = random.Random(seed)
        matcher, ids = self.matcher(grammar), []
        planned: list[int] = []
        while len(ids) < max_tokens:
            allowed = self.allowed(matcher)
            if self.end in allowed and draw.random() < 0.5:
                return self.text(ids)
            if not planned and len(allowed) > 20 and draw.random() < 0.3:
                planned = self.ids(draw.choice(goals))
            choice = planned.pop(0) if planned else -1
            if choice not in allowed:
                planned = []
                choice = self._choose(allowed, draw)
            if choice == self.end:
                return self.text(ids)
            assert matcher.consume_token(choice)
            ids.append(choice)
        return None


@functools.cache
def small_vocabulary(*markers: str) -> SmallVocabulary:
    """One vocabulary for all tests that need the same markers."""
    return SmallVocabulary(markers)


@pytest.fixture(scope="session")
def plain_vocabulary() -> SmallVocabulary:
    """Bytes, and the markers of thinking."""
    return small_vocabulary("<think>", "</think>")
