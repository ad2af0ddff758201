"""Small tokenizers of the kinds that models have, and a fake engine that a test drives by hand."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from quire.checkpoint.tokenizer_source import GGUFVocabulary
from quire.engine.port import EngineInfo
from quire.errors import EngineDeadError
from quire.frontend.gguf_tokenizer import build_gguf_tokenizer
from quire.frontend.tokenizer import Tokenizer
from quire.types.deltas import StepOutputs
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest

CORPUS = [
    "the quick brown fox jumps over the lazy dog 1234 times, doesn't it?",
    "der schnelle braune Fuchs springt über den faulen Hund; café, naïve",
    "def f(x):\n    return x + 1  # a comment\n\n\n",
    "你好，世界。今日は良い天気ですね。",
    "emoji 🙂 👩‍👩‍👧 and the user system assistant im_end im_start",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: byte-level BPE. `<think>` is an added token, but no control token."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("日本", normalized=False)])
    return Tokenizer(backend, named_tokens={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})


def sentencepiece_vocabulary(**changes: Any) -> GGUFVocabulary:
    """As in a GGUF file of Llama 2: scores, byte tokens, "▁" for a space."""
    words = ["▁the", "▁a", "he", "▁t", "lo", "llo", "hello", "▁hello", "▁wor", "ld", "▁world", "in", "▁in", "🙂", "▁▁"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzé好<|>/_\n"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(words) + len(letters))]
    scores = (
        [0.0] * 259 + [-float(rank) for rank in range(len(words))] + [-100.0 - rank for rank in range(len(letters))]
    )
    fields: dict[str, Any] = {
        "model": "llama",
        "pre": "",
        "tokens": tokens,
        "scores": scores,
        "token_types": types,
        "merges": [],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return GGUFVocabulary(**{**fields, **changes})


def sentencepiece() -> Tokenizer:
    """As Llama 2 from a GGUF file: a space in front of every piece of text."""
    vocabulary = sentencepiece_vocabulary()
    backend = build_gguf_tokenizer(vocabulary, source="test.gguf")
    return Tokenizer(backend, named_tokens={"bos_token": "<s>", "eos_token": "</s>"}, starts_with_bos=True)


def metaspace() -> Tokenizer:
    """As newer Llama 2 and Mistral tokenizers: a space in front of the first word of the prompt only."""
    backend = build_gguf_tokenizer(sentencepiece_vocabulary(), source="test.gguf")
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(backend, named_tokens={"bos_token": "<s>", "eos_token": "</s>"})


def word_piece() -> Tokenizer:
    """A tokenizer whose tokens mean different text in different surroundings."""
    words = ["[UNK]", "the", "quick", "fox", "jump", "##s", "##ing", ",", ".", "a", "[SEP]"]
    backend = Backend(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_tokens([AddedToken("[SEP]", special=True, normalized=False)])
    return Tokenizer(backend, named_tokens={"eos_token": "[SEP]"})


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "word_piece": word_piece,
}
_built: dict[str, Tokenizer] = {}


def tokenizer_of(kind: str) -> Tokenizer:
    """A tokenizer of a kind, built once: none of its methods changes it."""
    if kind not in _built:
        _built[kind] = KINDS[kind]()
    return _built[kind]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return tokenizer_of("byte_level")


@pytest.fixture(name="tokenizer_of", scope="session")
def fixture_tokenizer_of() -> Callable[[str], Tokenizer]:
    return tokenizer_of


@pytest.fixture(scope="session")
def vocabulary_of() -> Callable[..., GGUFVocabulary]:
    return sentencepiece_vocabulary


@pytest.fixture(scope="session")
def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The byte-level tokenizer as a tokenizer.json."""
    content: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    return content


INFO = EngineInfo(
    max_model_len=64,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    scheduling_policy="fcfs",
    num_blocks=64,
    block_size=16,
    vocab_size=512,
    dtype="float32",
    device="cpu",
    memory={},
    start_seconds={},
)


@dataclass
class HandDrivenPort:
    """An engine that does what the test says: `outputs` feeds the front end, the other fields show its calls."""

    info: EngineInfo = INFO
    requests: list[GenerationRequest] = field(default_factory=list)
    aborted: list[RequestId] = field(default_factory=list)
    closed: bool = False
    recording: bool = False
    dead: bool = False
    outputs: "asyncio.Queue[list[StepOutputs] | Exception]" = field(default_factory=asyncio.Queue)

    async def add(self, request: GenerationRequest) -> None:
        self._check()
        self.requests.append(request)

    async def abort(self, request_ids: list[RequestId]) -> None:
        self._check()
        self.aborted += request_ids

    async def start_profile(self) -> None:
        self._check()
        self.recording = True

    async def stop_profile(self) -> str:
        self._check()
        self.recording = False
        return "/traces/1.json.gz"

    async def receive(self) -> list[StepOutputs]:
        item = await self.outputs.get()
        if isinstance(item, Exception):
            self.dead = True
            raise item
        return item

    async def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        if self.dead:
            raise EngineDeadError("the engine process has ended")


@pytest.fixture(scope="session")
def make_port() -> Callable[[], HandDrivenPort]:
    return HandDrivenPort
