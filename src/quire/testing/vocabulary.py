"""A vocabulary over the tokens of `FakeExecutor`, for requests with grammars."""

import json

from quire.engine.grammar import GrammarVocabulary
from quire.testing.tokens import VOCAB_SIZE

EOS_TOKEN_IDS = (2, 3)
NUM_SPECIAL = 4

_WORDS = ('{"', '":', '"}', '","', "true", "false", "null", "[]", ", ", "name", "age")


def make_vocabulary() -> GrammarVocabulary:
    """Four control tokens, of which two end an answer; the 256 bytes; numbers, pairs of letters and parts of JSON.

    About half of the model's thousand ids have no text, and no grammar allows them.
    """
    texts = [bytes([byte]) for byte in range(256)]
    texts += [str(number).encode() for number in range(10, 100)]
    texts += [word.encode() for word in _WORDS]
    texts += [f"{first}{second}".encode() for first in "abcdefghij" for second in "abcdefghij"]
    written = _written_bytes()
    control = ["<a>", "<b>", "<eos>", "<eot>"]
    tokens = control + ["".join(written[byte] for byte in text) for text in texts]
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in enumerate(control)],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": []},
    }
    return GrammarVocabulary(tokenizer_json=json.dumps(tokenizer), vocab_size=VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS)


def _written_bytes() -> list[str]:
    """The character that a byte-level tokenizer writes for each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
