"""What changes single logits before a draw, and what keeps account of the tokens drawn. Only in steps that need it."""

import torch
import triton
import triton.language as tl

from quire.kernels.sample.device_tensors import PROMPT_FLAG, DeviceBadWords, DeviceEdits, DeviceMask, DevicePenalties

_INFINITY = tl.constexpr(float("inf"))
_PROMPT_FLAG = tl.constexpr(PROMPT_FLAG)
_ENTRIES = 256
_TOKENS = 2048


@triton.jit(do_not_specialize=["num_entries"], do_not_specialize_on_alignment=["rows", "token_ids", "values"])
def _read_entries_kernel(logits, rows, token_ids, values, num_entries, VOCAB: tl.constexpr, ENTRIES: tl.constexpr):
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    exists = entry < num_entries
    row = tl.load(rows + entry, mask=exists, other=0).to(tl.int64)
    token = tl.load(token_ids + entry, mask=exists, other=0)
    tl.store(values + entry, tl.load(logits + row * VOCAB + token, mask=exists), mask=exists)


@triton.jit(do_not_specialize=["num_entries"], do_not_specialize_on_alignment=["rows", "token_ids", "values"])
def _write_entries_kernel(
    logits, rows, token_ids, values, num_entries, ADDS: tl.constexpr, VOCAB: tl.constexpr, ENTRIES: tl.constexpr
):
    """Writes `values` (None: excludes the tokens), or adds them."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    exists = entry < num_entries
    row = tl.load(rows + entry, mask=exists, other=0).to(tl.int64)
    token = tl.load(token_ids + entry, mask=exists, other=0)
    place = logits + row * VOCAB + token
    if values is None:
        tl.store(place, -_INFINITY, mask=exists)
    else:
        value = tl.load(values + entry, mask=exists, other=0.0)
        if ADDS:
            value += tl.load(place, mask=exists, other=0.0)
        tl.store(place, value, mask=exists)


@triton.jit(do_not_specialize_on_alignment=["rows"])
def _exclude_rows_kernel(logits, rows, VOCAB: tl.constexpr, TOKENS: tl.constexpr):
    row = tl.load(rows + tl.program_id(1)).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    tl.store(logits + row * VOCAB + token, -_INFINITY, mask=token < VOCAB)


@triton.jit(do_not_specialize_on_alignment=["rows", "words"])
def _mask_kernel(logits, rows, words, VOCAB: tl.constexpr, NUM_WORDS: tl.constexpr, TOKENS: tl.constexpr):
    entry = tl.program_id(1)
    row = tl.load(rows + entry).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    exists = token < VOCAB
    word = tl.load(words + entry.to(tl.int64) * NUM_WORDS + token // 32, mask=exists, other=-1)
    is_excluded = ((word >> (token % 32)) & 1) == 0
    tl.store(logits + row * VOCAB + token, -_INFINITY, mask=exists & is_excluded)


def apply_mask(logits: torch.Tensor, mask: DeviceMask) -> None:
    """See `quire.kernels.sample.device.apply_mask`."""
    vocab_size = logits.shape[1]
    num_rows, num_words = mask.words.shape
    assert num_words * 32 >= vocab_size, f"{num_words} words for {vocab_size} tokens"
    _mask_kernel[(triton.cdiv(vocab_size, _TOKENS), num_rows)](
        logits, mask.rows, mask.words, VOCAB=vocab_size, NUM_WORDS=num_words, TOKENS=_TOKENS, num_warps=4
    )


def apply_edits(logits: torch.Tensor, edits: DeviceEdits) -> None:
    """See `quire.kernels.sample.device.apply_edits`."""
    vocab_size = logits.shape[1]
    if len(edits.restricted_rows):
        kept = torch.empty(len(edits.allowed_rows), dtype=torch.float32, device=logits.device)
        grid = (triton.cdiv(len(kept), _ENTRIES),)
        entries = (edits.allowed_rows, edits.allowed_ids, kept, len(kept))
        _read_entries_kernel[grid](logits, *entries, VOCAB=vocab_size, ENTRIES=_ENTRIES, num_warps=4)
        _exclude_rows_kernel[(triton.cdiv(vocab_size, _TOKENS), len(edits.restricted_rows))](
            logits, edits.restricted_rows, VOCAB=vocab_size, TOKENS=_TOKENS, num_warps=4
        )
        _write_entries(logits, edits.allowed_rows, edits.allowed_ids, kept, adds=False)
    _write_entries(logits, edits.excluded_rows, edits.excluded_ids, None, adds=False)
    # After the exclusions, and in a launch of its own: a token may have both.
    _write_entries(logits, edits.bias_rows, edits.bias_ids, edits.biases, adds=True)


def _write_entries(
    logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, values: torch.Tensor | None, *, adds: bool
) -> None:
    if len(rows):
        _write_entries_kernel[(triton.cdiv(len(rows), _ENTRIES),)](
            logits,
            rows,
            token_ids,
            values,
            len(rows),
            ADDS=adds,
            VOCAB=logits.shape[1],
            ENTRIES=_ENTRIES,
            num_warps=4,
        )


@triton.jit(do_not_specialize=["num_words"], do_not_specialize_on_alignment=["entries"])
def _exclude_bad_words_kernel(logits, entries, num_words, VOCAB: tl.constexpr, TOKENS: tl.constexpr):
    """One word: its tokens but the last against the end of the row's answer."""
    word = tl.program_id(0)
    row = tl.load(entries + word)
    last_id = tl.load(entries + num_words + word)
    tokens = tl.load(entries + 2 * num_words + word).to(tl.pointer_type(tl.int32))
    num_tokens = tl.load(entries + 3 * num_words + word)
    ring = tl.load(entries + 4 * num_words + word).to(tl.pointer_type(tl.int32))
    ring_size = tl.load(entries + 5 * num_words + word)
    num_produced = tl.load(entries + 6 * num_words + word)
    num_different = tl.where(num_produced < num_tokens, 1, 0)
    first = num_tokens * 0
    while (first < num_tokens) & (num_different == 0):
        index = first + tl.arange(0, TOKENS)
        exists = index < num_tokens
        wanted = tl.load(tokens + index, mask=exists, other=0)
        place = (num_produced - num_tokens + index) % ring_size
        found = tl.load(ring + place, mask=exists, other=0)
        num_different += tl.sum((wanted != found).to(tl.int32), 0)
        first += TOKENS
    if num_different == 0:
        tl.store(logits + row * VOCAB + last_id, -_INFINITY)


def exclude_bad_words(logits: torch.Tensor, bad_words: DeviceBadWords) -> None:
    """See `quire.kernels.sample.device.exclude_bad_words`."""
    num_words = bad_words.entries.shape[1]
    _exclude_bad_words_kernel[(num_words,)](
        logits, bad_words.entries, num_words, VOCAB=logits.shape[1], TOKENS=32, num_warps=1
    )


@triton.jit(do_not_specialize=["num_rings"], do_not_specialize_on_alignment=["rings", "token_ids"])
def _remember_kernel(rings, token_ids, num_rings, RINGS: tl.constexpr):
    ring = tl.program_id(0) * RINGS + tl.arange(0, RINGS)
    exists = ring < num_rings
    row = tl.load(rings + ring, mask=exists, other=0)
    address = tl.load(rings + num_rings + ring, mask=exists, other=0)
    size = tl.load(rings + 2 * num_rings + ring, mask=exists, other=1)
    num_produced = tl.load(rings + 3 * num_rings + ring, mask=exists, other=0)
    token = tl.load(token_ids + row, mask=exists, other=-1)
    tl.store(address.to(tl.pointer_type(tl.int32)) + num_produced % size, token, mask=exists)


def remember_drawn_tokens(rings: torch.Tensor, token_ids: torch.Tensor) -> None:
    """See `quire.kernels.sample.device.remember_drawn_tokens`."""
    num_rings = rings.shape[1]
    _remember_kernel[(triton.cdiv(num_rings, _ENTRIES),)](rings, token_ids, num_rings, RINGS=_ENTRIES, num_warps=4)


@triton.jit(do_not_specialize_on_alignment=["rows", "count_addresses", "repetitions", "frequencies", "presences"])
def _penalties_kernel(
    logits,
    rows,
    count_addresses,
    repetitions,
    frequencies,
    presences,
    VOCAB: tl.constexpr,
    TOKENS: tl.constexpr,
):
    entry = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    counts = tl.load(count_addresses + entry).to(tl.pointer_type(tl.int32))
    found = tl.load(counts + token, mask=token < VOCAB, other=0)
    has_occurred = found != 0
    count = (found & (_PROMPT_FLAG - 1)).to(tl.float32)
    repetition = tl.load(repetitions + entry)
    place = logits + tl.load(rows + entry).to(tl.int64) * VOCAB + token
    logit = tl.load(place, mask=has_occurred, other=0.0)
    # Two branches that are both computed: neither may divide by what the other one is meant for.
    logit = tl.where(logit > 0.0, tl.math.div_rn(logit, repetition), logit * repetition)
    logit -= tl.load(frequencies + entry) * count
    logit -= tl.where(count > 0.0, tl.load(presences + entry), 0.0)
    tl.store(place, logit, mask=has_occurred)


def apply_penalties(logits: torch.Tensor, penalties: DevicePenalties) -> None:
    """See `quire.kernels.sample.device.apply_penalties`."""
    vocab_size = logits.shape[1]
    _penalties_kernel[(triton.cdiv(vocab_size, _TOKENS), len(penalties.rows))](
        logits,
        penalties.rows,
        penalties.count_addresses,
        penalties.repetition,
        penalties.frequency,
        penalties.presence,
        VOCAB=vocab_size,
        TOKENS=_TOKENS,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["num_tokens", "num_prompt_tokens"], do_not_specialize_on_alignment=["token_ids"])
def _count_kernel(counts, token_ids, num_tokens, num_prompt_tokens, TOKENS: tl.constexpr):
    index = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    is_prompt = index < num_prompt_tokens
    token = tl.load(token_ids + index, mask=index < num_tokens, other=0)
    # Many programs may find the same token: the flag is the same for all, the count is a sum.
    tl.atomic_or(counts + token, tl.full([TOKENS], _PROMPT_FLAG, tl.int32), mask=is_prompt)
    tl.atomic_add(counts + token, tl.full([TOKENS], 1, tl.int32), mask=(index < num_tokens) & ~is_prompt)


def count_tokens(counts: torch.Tensor, token_ids: torch.Tensor, num_prompt_tokens: int) -> None:
    """See `quire.kernels.sample.device.count_tokens`."""
    counts.zero_()
    num_tokens = len(token_ids)
    _count_kernel[(triton.cdiv(num_tokens, _ENTRIES),)](
        counts, token_ids, num_tokens, num_prompt_tokens, TOKENS=_ENTRIES, num_warps=4
    )


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["rows", "count_addresses", "token_ids"])
def _count_drawn_kernel(rows, count_addresses, token_ids, num_rows, ROWS: tl.constexpr):
    entry = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = entry < num_rows
    token = tl.load(token_ids + tl.load(rows + entry, mask=exists, other=0), mask=exists, other=-1)
    was_drawn = token >= 0
    place = tl.load(count_addresses + entry, mask=exists, other=0).to(tl.pointer_type(tl.int32)) + token
    # A row stands in the list once, so nobody else counts here.
    tl.store(place, tl.load(place, mask=was_drawn, other=0) + 1, mask=was_drawn)


def count_drawn_tokens(penalties: DevicePenalties, token_ids: torch.Tensor) -> None:
    """See `quire.kernels.sample.device.count_drawn_tokens`."""
    num_rows = len(penalties.rows)
    _count_drawn_kernel[(triton.cdiv(num_rows, _ENTRIES),)](
        penalties.rows, penalties.count_addresses, token_ids, num_rows, ROWS=_ENTRIES, num_warps=4
    )
