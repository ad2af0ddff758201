"""Where a tokenizer comes from. The front end builds the tokenizer; here are only its files and fields."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """The tokenizer fields of a GGUF file, as they stand there.

    Attributes:
        model: Kind of tokenizer: "gpt2" (byte-level BPE with merges) or "llama" (SentencePiece with scores).
        pre: Name of the pre-tokenizer's rule ("smollm", "llama-bpe", "qwen2"); "" where the file names none.
        tokens: Text of each id. Byte-level text ("Ġthe") for gpt2, SentencePiece text ("▁the", "<0x0A>") for llama.
        scores: One per token, or empty where the file has none.
        token_types: One per token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; or empty.
        merges: "left right" in order of rank; empty for llama.
        add_bos_token: Whether a prompt starts with bos; None where the file does not say.
        add_eos_token: Whether a prompt ends with eos; None where the file does not say.
        add_space_prefix: Whether a text gets a space in front (llama); None where the file does not say.
    """

    model: str
    pre: str
    tokens: list[str]
    scores: list[float]
    token_types: list[int]
    merges: list[str]
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    unknown_token_id: int | None = None
    padding_token_id: int | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_space_prefix: bool | None = None


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """A tokenizer's files.

    Attributes:
        kind: "tokenizer.json": `path` is that file. "gguf": `path` is the GGUF file, `vocabulary()` its fields.
        config: tokenizer_config.json, completed from special_tokens_map.json; empty for GGUF.
        read_vocabulary: Set for GGUF; reads the fields, which takes tens of milliseconds.
    """

    kind: Literal["tokenizer.json", "gguf"]
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    read_vocabulary: Callable[[], GGUFVocabulary] | None = None

    def vocabulary(self) -> GGUFVocabulary:
        """The fields of a GGUF tokenizer.

        Raises:
            CorruptCheckpointError: The file's fields are missing, out of range or of the wrong type.
        """
        assert self.read_vocabulary is not None, f"no GGUF vocabulary in a tokenizer of kind {self.kind}"
        return self.read_vocabulary()
