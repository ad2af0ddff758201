"""Norm, rope and cache write in one launch.

A program takes one token and a few heads, of any kind: queries, keys and values are told apart by masks over the
heads, because few models have head counts that a power of two divides.

    qkv of a token | q0 q1 ... | k0 ... | v0 ... |
    programs       |  0    |   1     |   2   |        a head: [first half of R | second half | rest]
"""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch

_ELEMENTS_PER_PROGRAM = 2048
_ELEMENTS_PER_THREAD = 16


@triton.jit
def _kinds_of_heads(head, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr):
    """(is query, is key, is value); none of them behind the last head."""
    is_query = head < NUM_HEADS
    is_key = (head >= NUM_HEADS) & (head < NUM_HEADS + NUM_KV_HEADS)
    is_value = (head >= NUM_HEADS + NUM_KV_HEADS) & (head < NUM_HEADS + 2 * NUM_KV_HEADS)
    return is_query, is_key, is_value


@triton.jit
def _norm_weights(query_norm, key_norm, dimension, is_dimension, is_query, is_key):
    """Each head's norm weights [HEADS, dimensions]; zeros for values."""
    of_queries = tl.load(query_norm + dimension, mask=is_query & is_dimension, other=0.0).to(tl.float32)
    of_keys = tl.load(key_norm + dimension, mask=is_key & is_dimension, other=0.0).to(tl.float32)
    return of_queries + of_keys


@triton.jit
def _load_rotation(cosines, sines, offsets, is_column, HEADS: tl.constexpr):
    """Cosines and sines [HEADS, columns]: every head loads them for itself, which spares an exchange of threads."""
    offsets = tl.broadcast_to(offsets, [HEADS, offsets.shape[1]])
    is_column = tl.broadcast_to(is_column, [HEADS, offsets.shape[1]])
    return tl.load(cosines + offsets, mask=is_column, other=0.0), tl.load(sines + offsets, mask=is_column, other=0.0)


@triton.jit
def _store_heads(query_row, key_row, value_row, offsets, values, is_query, is_key, is_value):
    """Stores a part of the heads; the rows are shifted so that a head's offset in qkv is right in each of them."""
    tl.store(query_row + offsets, values.to(query_row.dtype.element_ty), mask=is_query)
    tl.store(key_row + offsets, values.to(key_row.dtype.element_ty), mask=is_key)
    tl.store(value_row + offsets, values.to(value_row.dtype.element_ty), mask=is_value)


@triton.jit(do_not_specialize=["slot_mapping"])
def _rope_kv_write_kernel(
    qkv,
    cosines,
    sines,
    query_norm,
    key_norm,
    key_cache,
    value_cache,
    slot_mapping,
    query,
    epsilon,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    PDL: tl.constexpr,
):
    """HEADS heads of one token. HALF is R/2; the blocks are HALF and HEAD_DIM - R, rounded up to powers of two."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    num_all_heads: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    pieces: tl.constexpr = (num_all_heads + HEADS - 1) // HEADS
    token = (tl.program_id(0) // pieces).to(tl.int64)
    head = (tl.program_id(0) % pieces * HEADS + tl.arange(0, HEADS))[:, None]
    is_query, is_key, is_value = _kinds_of_heads(head, NUM_HEADS, NUM_KV_HEADS)
    column = tl.arange(0, HALF_BLOCK)[None, :]
    is_column = column < HALF
    if REST_BLOCK:
        rest_column = 2 * HALF + tl.arange(0, REST_BLOCK)[None, :]
        is_rest = rest_column < HEAD_DIM
    if query_norm is not None:
        first_weight = _norm_weights(query_norm, key_norm, column, is_column, is_query, is_key)
        second_weight = _norm_weights(query_norm, key_norm, column + HALF, is_column, is_query, is_key)
        if REST_BLOCK:
            rest_weight = _norm_weights(query_norm, key_norm, rest_column, is_rest, is_query, is_key)
    if PDL:
        tl.extra.cuda.gdc_wait()

    slot = tl.load(slot_mapping + token)
    offsets = head * HEAD_DIM + column
    source = qkv + token * (num_all_heads * HEAD_DIM)
    first = tl.load(source + offsets, mask=(head < num_all_heads) & is_column, other=0.0).to(tl.float32)
    second = tl.load(source + offsets + HALF, mask=(head < num_all_heads) & is_column, other=0.0).to(tl.float32)
    cosine, sine = _load_rotation(cosines, sines, token * HALF + column, is_column, HEADS)
    if REST_BLOCK:
        rest_offsets = head * HEAD_DIM + rest_column
        rest = tl.load(source + rest_offsets, mask=(head < num_all_heads) & is_rest, other=0.0).to(tl.float32)

    if query_norm is not None:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        if REST_BLOCK:
            squares += tl.sum(rest * rest, axis=1)
        scale = tl.rsqrt(squares / HEAD_DIM + epsilon)[:, None]
        first = tl.where(is_value, first, first * scale * first_weight)
        second = tl.where(is_value, second, second * scale * second_weight)
        if REST_BLOCK:
            rest = tl.where(is_value, rest, rest * scale * rest_weight)
    turned_first = tl.where(is_value, first, first * cosine - second * sine)
    turned_second = tl.where(is_value, second, second * cosine + first * sine)

    is_key = is_key & (slot >= 0)
    is_value = is_value & (slot >= 0)
    query_row = query + token * (NUM_HEADS * HEAD_DIM)
    key_row = key_cache + slot * (NUM_KV_HEADS * HEAD_DIM) - NUM_HEADS * HEAD_DIM
    value_row = value_cache + slot * (NUM_KV_HEADS * HEAD_DIM) - (NUM_HEADS + NUM_KV_HEADS) * HEAD_DIM
    _store_heads(
        query_row,
        key_row,
        value_row,
        offsets,
        turned_first,
        is_query & is_column,
        is_key & is_column,
        is_value & is_column,
    )
    _store_heads(
        query_row,
        key_row,
        value_row,
        offsets + HALF,
        turned_second,
        is_query & is_column,
        is_key & is_column,
        is_value & is_column,
    )
    if REST_BLOCK:
        _store_heads(
            query_row, key_row, value_row, rest_offsets, rest, is_query & is_rest, is_key & is_rest, is_value & is_rest
        )


def rope_kv_write(
    qkv: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    """See `quire.kernels.rope_kv_write.rope_kv_write`."""
    num_tokens, (num_kv_heads, head_dim) = qkv.shape[0], key_cache.shape[2:]
    cosines, sines = rotation
    half = cosines.shape[1]
    assert qkv.is_contiguous() and 2 * half <= head_dim, f"qkv strides {qkv.stride()}, R {2 * half}, D {head_dim}"
    query = qkv.new_empty((num_tokens, num_heads, head_dim))
    half_block, rest_block, heads, num_warps = _config(num_heads + 2 * num_kv_heads, head_dim, half)
    if num_tokens:
        _rope_kv_write_kernel[(num_tokens * triton.cdiv(num_heads + 2 * num_kv_heads, heads),)](
            qkv,
            cosines,
            sines,
            query_norm,
            key_norm,
            key_cache,
            value_cache,
            slot_mapping,
            query,
            epsilon,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            HALF=half,
            HALF_BLOCK=half_block,
            REST_BLOCK=rest_block,
            HEADS=heads,
            PDL=programmatic_launch.is_supported(qkv.device),
            num_warps=num_warps,
            **programmatic_launch.options(qkv),
        )
    return query


def _config(num_all_heads: int, head_dim: int, half: int) -> tuple[int, int, int, int]:
    """(columns of a half, columns of what is not turned, heads, warps) of a program; 0 columns where all is turned."""
    half_block = triton.next_power_of_2(half)
    rest_block = triton.next_power_of_2(head_dim - 2 * half) if head_dim > 2 * half else 0
    head_elements = 2 * half_block + rest_block
    heads = min(_power_of_2_below(_ELEMENTS_PER_PROGRAM // head_elements), triton.next_power_of_2(num_all_heads))
    num_warps = _power_of_2_below(heads * head_elements // (32 * _ELEMENTS_PER_THREAD))
    return half_block, rest_block, heads, num_warps


def _power_of_2_below(number: int) -> int:
    """The largest that is not greater; 1 for less than 1."""
    return 1 << max(number.bit_length() - 1, 0)
