"""Paged attention in torch: gather keys and values into a small buffer, then fused dense attention.

The query heads that share a key head stand on the query axis (decoding) or on a broadcast head axis (tiles), so keys
and values are never repeated in memory. torch's fused attention knows no soft cap: scores with one are spelt out.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from quire.kernels.paged_attention.plan import AttentionMetadata, DecodeGroup, Tile, make_plan

prepare = make_plan


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """See `quire.kernels.paged_attention.write_kv`."""
    if key.dtype != key_cache.dtype:
        key, value = key.to(key_cache.dtype), value.to(value_cache.dtype)
    shape = (-1, *key_cache.shape[2:])
    key_cache.view(shape).index_copy_(0, slot_mapping, key)
    value_cache.view(shape).index_copy_(0, slot_mapping, value)


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """See `quire.kernels.paged_attention.attend`."""
    plan = metadata.by_window[sliding_window]
    output = torch.empty(query.shape, dtype=query.dtype)
    for group in plan.groups:
        _attend_group(query, key_cache, value_cache, group, scale, soft_cap, output)
    for tile in plan.tiles:
        _attend_tile(query, key_cache, value_cache, tile, metadata, scale, soft_cap, output)
    return output


def _attend_group(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    group: DecodeGroup,
    scale: float,
    soft_cap: float | None,
    output: torch.Tensor,
) -> None:
    """Fills in the output rows of a group of single queries."""
    if group.rows is not None:
        query = query.index_select(0, group.rows)
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = key_cache.shape[2]
    grouped = (group.num_sequences, num_kv_heads, num_heads // num_kv_heads, head_dim)
    keys = _gather_blocks(key_cache, group, group.keys).to(query.dtype)
    values = _gather_blocks(value_cache, group, group.values).to(query.dtype)
    attended = _attention(
        query.view(grouped), keys.transpose(1, 2), values.transpose(1, 2), group.mask, False, scale, soft_cap
    )
    if group.rows is None:
        output.view(grouped).copy_(attended)
    else:
        output.index_copy_(0, group.rows, attended.reshape(query.shape))


def _gather_blocks(cache: torch.Tensor, group: DecodeGroup, buffer: torch.Tensor) -> torch.Tensor:
    """The group's keys or values, [B, L, H_kv, D] in the buffer."""
    num_blocks, _, num_kv_heads, head_dim = cache.shape
    torch.index_select(cache.view(num_blocks, -1), 0, group.blocks, out=buffer.view(*group.blocks.shape, -1))
    if group.stale is not None:
        buffer.index_fill_(0, group.stale, 0)
    return buffer.view(group.num_sequences, -1, num_kv_heads, head_dim)[:, group.columns]


def _attend_tile(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    tile: Tile,
    metadata: AttentionMetadata,
    scale: float,
    soft_cap: float | None,
    output: torch.Tensor,
) -> None:
    """Fills in the output rows of a tile of consecutive queries."""
    num_kv_heads = key_cache.shape[2]
    rows = slice(tile.first_row, tile.first_row + tile.num_queries)
    heads = (tile.num_queries, num_kv_heads, query.shape[1] // num_kv_heads, query.shape[2])
    tile_query = query[rows].view(heads).permute(1, 2, 0, 3)
    keys = _gather_slots(key_cache, tile.near_slots, metadata.keys, tile_query)
    values = _gather_slots(value_cache, tile.near_slots, metadata.values, tile_query)
    if tile.far_slots:
        attended, log_sum = _partial_attention(tile_query, keys, values, tile.mask, tile.mask is None, scale, soft_cap)
        attended = _add_far(tile_query, key_cache, value_cache, tile, metadata, scale, soft_cap, attended, log_sum)
    else:
        attended = _attention(tile_query, keys, values, tile.mask, tile.mask is None, scale, soft_cap)
    output[rows].view(heads).copy_(attended.permute(2, 0, 1, 3))


def _add_far(
    tile_query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    tile: Tile,
    metadata: AttentionMetadata,
    scale: float,
    soft_cap: float | None,
    attended: torch.Tensor,
    log_sum: torch.Tensor,
) -> torch.Tensor:
    """Merges the far range into attention [H_kv, G, T, D] over edge and near; exp(log_sum): its softmax denominator.

    No query is masked here, so the heads of a group stand on the query axis: each key is read once for all of them.
    """
    num_kv_heads, group_size, num_queries, head_dim = tile_query.shape
    packed = (num_kv_heads, 1, group_size * num_queries, head_dim)
    packed_query = tile_query.reshape(packed)
    merged, log_sum = attended.float().reshape(packed), log_sum.reshape(packed[:3])
    for slots in tile.far_slots:
        keys = _gather_slots(key_cache, slots, metadata.keys, packed_query)
        values = _gather_slots(value_cache, slots, metadata.values, packed_query)
        further, further_log_sum = _partial_attention(packed_query, keys, values, None, False, scale, soft_cap)
        merged.lerp_(further.float(), torch.sigmoid(further_log_sum - log_sum).unsqueeze_(-1))
        log_sum = torch.logaddexp(log_sum, further_log_sum)
    return merged.view(tile_query.shape)


def _gather_slots(cache: torch.Tensor, slots: torch.Tensor, buffer: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values at `slots` [L] for a query [H_kv, G, T, D], as [H_kv, G, L, D]; the axis G takes no memory."""
    num_kv_heads, group_size, _, head_dim = query.shape
    rows = cache.view(-1, num_kv_heads * head_dim)
    gathered = torch.index_select(rows, 0, slots, out=buffer[: slots.shape[0]]).to(query.dtype)
    return gathered.view(-1, num_kv_heads, 1, head_dim).permute(1, 2, 0, 3).expand(-1, group_size, -1, -1)


def _attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """Attention of query [.., G, T, D] over all of its keys [.., G, L, D]."""
    if soft_cap is not None:
        return _capped_attention(query, keys, values, mask, is_causal, scale, soft_cap)[0]
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=is_causal, scale=scale)


def _partial_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    soft_cap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over some of the keys and the logarithm of its softmax denominator, [H_kv, G, T] float32."""
    if soft_cap is not None:
        return _capped_attention(query, keys, values, mask, is_causal, scale, soft_cap)
    attended, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, is_causal, attn_mask=mask, scale=scale
    )
    return attended, log_sum


def _capped_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    soft_cap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_partial_attention` with capped scores, which stand in memory as [.., G, T, L] float32."""
    scores = torch.matmul(query.float() * scale, keys.float().transpose(-1, -2))
    scores.div_(soft_cap).tanh_().mul_(soft_cap)
    if is_causal:
        is_hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
        scores.masked_fill_(is_hidden, float("-inf"))
    elif mask is not None:
        scores.add_(mask)
    log_sum = torch.logsumexp(scores, dim=-1)
    weights = scores.sub_(log_sum.unsqueeze(-1)).exp_()
    return torch.matmul(weights, values.float()).to(query.dtype), log_sum
