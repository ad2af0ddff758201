"""Tokenizers built from the vocabulary fields of a GGUF file."""

import logging

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from quire.checkpoint.tokenizer_source import GGUFVocabulary
from quire.errors import CorruptCheckpointError, UnsupportedModelError

logger = logging.getLogger("quire.frontend")

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Token types of a GGUF vocabulary that are matched in text before any merge."""

_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace("{1,3}", "")
_TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT_PATTERNS = {"llama-bpe": _LLAMA3_PATTERN, "qwen2": _QWEN2_PATTERN, "tekken": _TEKKEN_PATTERN}
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "default": "gpt-2",
    "": "gpt-2",
    "starcoder": "smollm",
}
PRE_TOKENIZERS = ("gpt-2", "smollm", *_SPLIT_PATTERNS)
"""Names of the ways to cut text before merges that quire knows."""

_STARTS_WITH_BOS = frozenset({"llama-bpe", "tekken"})
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "tekken"})


def build_gguf_tokenizer(vocabulary: GGUFVocabulary, *, source: str) -> Backend:
    """Builds the tokenizer that `vocabulary` describes.

    Args:
        vocabulary: The fields as they stand in the file.
        source: Name of the file, for error texts.

    Raises:
        CorruptCheckpointError: Fields that contradict each other.
        UnsupportedModelError: A kind of tokenizer or a pre-tokenizer that quire does not know.
    """
    _check_lengths(vocabulary, source)
    try:
        if vocabulary.model == "gpt2":
            backend = _build_byte_level(vocabulary, source)
        elif vocabulary.model == "llama":
            backend = _build_sentencepiece(vocabulary)
        else:
            raise UnsupportedModelError(
                f"{source}: a tokenizer of kind {vocabulary.model!r} is not supported",
                hint="GGUF files with a tokenizer of kind gpt2 or llama can be read; "
                "for others give --tokenizer with a folder or hub id that has a tokenizer.json",
            )
        _add_tokens(backend, vocabulary)
    except UnsupportedModelError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise CorruptCheckpointError(f"{source}: the tokenizer's vocabulary does not fit together: {error}") from error
    return backend


def starts_with_bos(vocabulary: GGUFVocabulary) -> bool:
    """Whether a prompt begins with bos: as the file says, otherwise as is usual for its kind."""
    if vocabulary.add_bos_token is not None:
        return vocabulary.add_bos_token
    return vocabulary.model == "llama" or _canonical(vocabulary.pre) in _STARTS_WITH_BOS


def _canonical(pre: str) -> str:
    return _ALIASES.get(pre, pre)


def _check_lengths(vocabulary: GGUFVocabulary, source: str) -> None:
    num_tokens = len(vocabulary.tokens)
    for name in ("scores", "token_types"):
        count = len(getattr(vocabulary, name))
        if count not in (0, num_tokens):
            raise CorruptCheckpointError(f"{source}: {count} tokenizer {name} for {num_tokens} tokens")
    if vocabulary.model == "llama" and not vocabulary.scores:
        raise CorruptCheckpointError(f"{source}: a tokenizer of kind 'llama' without scores")


def _build_byte_level(vocabulary: GGUFVocabulary, source: str) -> Backend:
    pre = _canonical(vocabulary.pre)
    if pre not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{source}: the pre-tokenizer {vocabulary.pre!r} is not supported",
            hint=f"known ones are {', '.join(PRE_TOKENIZERS)}; "
            "or give --tokenizer with a folder or hub id that has a tokenizer.json",
        )
    if not vocabulary.pre:
        logger.warning("%s names no pre-tokenizer: gpt-2's is used, prompts may be cut in unusual places", source)
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    backend = Backend(models.BPE(vocab=ids, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _byte_level_pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_level_pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(_SPLIT_PATTERNS[pre]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _build_sentencepiece(vocabulary: GGUFVocabulary) -> Backend:
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.unknown_token_id
    model = models.BPE(
        vocab=ids,
        merges=_merges_from_scores(vocabulary, ids),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Backend(model)
    prefixed = vocabulary.add_space_prefix is not False
    steps: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if prefixed else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip: list[decoders.Decoder] = [decoders.Strip(content=" ", left=1, right=0)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip],
    )
    return backend


def _merges_from_scores(vocabulary: GGUFVocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose result has the highest score: every pair, best result first."""
    scores, types = vocabulary.scores, vocabulary.token_types
    ranked = []
    for token, token_id in ids.items():
        if types and types[token_id] in (UNKNOWN, CONTROL):
            continue
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[token_id], token_id, left, right))
    ranked.sort()
    tokens = vocabulary.tokens
    return [(tokens[left], tokens[right]) for _, _, left, right in ranked]


def _add_tokens(backend: Backend, vocabulary: GGUFVocabulary) -> None:
    """Registers the tokens that are matched in text as a whole; they are in the vocabulary already."""
    named = (vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.eot_token_id)
    control = {token_id for token_id in named if token_id is not None}
    control.update(token_id for token_id, kind in enumerate(vocabulary.token_types) if kind in (UNKNOWN, CONTROL))
    defined = {token_id for token_id, kind in enumerate(vocabulary.token_types) if kind == USER_DEFINED}
    backend.add_tokens(
        [
            AddedToken(vocabulary.tokens[token_id], special=token_id in control, normalized=False)
            for token_id in sorted(control | defined)
            if vocabulary.tokens[token_id]
        ]
    )
