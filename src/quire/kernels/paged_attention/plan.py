"""Who reads which slots in a step: worked out once, used by every layer.

Sequences with one query (decoding) are put into groups of similar length, whose blocks are gathered side by side and
padded to the longest. Padding repeats the sequence's first block; slots behind its end, in its last block, are zeroed
in the buffer: a stale NaN would pass through any mask. All other sequences are cut into tiles of consecutive queries,
each with three ranges of keys:

    positions      ... | edge | far | near |        near: the tile's own tokens, causal
                                                    far:  every query of the tile sees all of it
                                                    edge: a sliding window leaves it behind query by query

Near and edge are computed together under one mask, far in pieces of bounded size; the partial results are merged.
So memory does not grow with the context.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

# Keys gathered at a time: large enough to amortise a call, small enough to stay in the cache between gather and use.
GROUP_BYTES = 4 * 2**20
PIECE_BYTES = 8 * 2**20

# Queries per tile. torch's causal attention computes what it masks within blocks of 512 keys, so smaller tiles do less
# work; each gathers its far range anew, so there are not many. A window's mask bounds them.
MIN_TILE_QUERIES = 128
MAX_TILES = 8
MAX_WINDOW_TILE_QUERIES = 512
LANES = 16
"""Floats in the widest vector register."""


@dataclass(slots=True)
class DecodeGroup:
    """B sequences with one query each, whose blocks fill M columns of the buffer, of which columns are read.

    Attributes:
        columns: Those that any of the sequences reads, in whole vector registers: L of M.
        rows: [B] int64, their rows on the flat axis; None if they are all rows in order.
        blocks: [B * blocks of the longest] int64.
        mask: [B, 1, 1, L], 0 or -inf, of the queries' dtype; None where all read all columns.
        stale: Rows of the buffer behind the end of their sequence, in its last block, int64; None without a mask.
        keys: [B * M, H_kv * D] buffer; shared between groups and layers.
        values: The same for values.
    """

    num_sequences: int
    columns: slice
    rows: torch.Tensor | None
    blocks: torch.Tensor
    mask: torch.Tensor | None
    stale: torch.Tensor | None
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class Tile:
    """Consecutive queries of one sequence.

    Attributes:
        first_row: Where the queries stand on the flat axis.
        near_slots: [L] int64; slots of edge and near.
        mask: [num_queries, L], 0 or -inf, of the queries' dtype; None for plain causal, with L = num_queries.
        far_slots: Pieces of the far range, each [<= piece] int64.
    """

    first_row: int
    num_queries: int
    near_slots: torch.Tensor
    mask: torch.Tensor | None
    far_slots: tuple[torch.Tensor, ...]


@dataclass(slots=True)
class WindowPlan:
    """What layers with one size of sliding window do."""

    groups: list[DecodeGroup]
    tiles: list[Tile]


@dataclass(slots=True)
class AttentionMetadata:
    """A step's plan for every size of sliding window.

    Attributes:
        query_lengths, context_lengths, block_tables: What it was made from, see `prepare`.
        keys: [rows, H_kv * D] buffer for gathered keys of the caches' number format.
        values: The same for values.
    """

    num_tokens: int
    query_lengths: Sequence[int]
    context_lengths: Sequence[int]
    block_tables: torch.Tensor
    by_window: dict[int | None, WindowPlan]
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class _Step:
    """The sequences of a step; row: where each starts on the flat axis."""

    query_lengths: Sequence[int]
    context_lengths: Sequence[int]
    first_rows: list[int]
    block_tables: torch.Tensor
    block_size: int
    key_bytes: int
    dtype: torch.dtype

    @property
    def piece_keys(self) -> int:
        return max(1, PIECE_BYTES // self.key_bytes)


@dataclass(slots=True)
class _GroupDraft:
    """Sequences of a group before its tensors exist, and the blocks that each reads: [first, end) of its table."""

    sequences: list[int]
    block_ranges: list[tuple[int, int]]

    @property
    def num_blocks(self) -> int:
        """Of each sequence, with padding."""
        return self.block_ranges[0][1] - self.block_ranges[0][0]


def make_plan(
    query_lengths: Sequence[int],
    context_lengths: Sequence[int],
    block_tables: torch.Tensor,
    key_cache: torch.Tensor,
    *,
    dtype: torch.dtype,
    sliding_windows: Sequence[int | None],
) -> AttentionMetadata:
    """See `quire.kernels.paged_attention.prepare`."""
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    width = num_kv_heads * head_dim
    ends = list(itertools.accumulate(query_lengths))
    first_rows = [end - length for end, length in zip(ends, query_lengths, strict=True)]
    step = _Step(
        query_lengths, context_lengths, first_rows, block_tables, block_size, width * key_cache.itemsize, dtype
    )
    longest = max(context_lengths, default=0)
    effective = {window: window if window is not None and window < longest else None for window in sliding_windows}
    drafts = {window: list(_draft_groups(step, window)) for window in set(effective.values())}
    tiles = {window: list(_make_tiles(step, window)) for window in drafts}
    num_rows = max(
        (
            *(len(draft.sequences) * draft.num_blocks * block_size for group in drafts.values() for draft in group),
            *(len(slots) for group in tiles.values() for tile in group for slots in (tile.near_slots, *tile.far_slots)),
        ),
        default=0,
    )
    keys, values = torch.empty((2, num_rows, width), dtype=key_cache.dtype).unbind()
    plans = {
        window: WindowPlan([_make_group(step, draft, window, keys, values) for draft in drafts[window]], tiles[window])
        for window in drafts
    }
    by_window = {window: plans[effective[window]] for window in effective}
    num_tokens = ends[-1] if ends else 0
    return AttentionMetadata(num_tokens, query_lengths, context_lengths, block_tables, by_window, keys, values)


def _draft_groups(step: _Step, window: int | None) -> Iterator[_GroupDraft]:
    """Groups of decoding sequences, by falling length: at most a quarter of a row is padding."""
    ranges = {
        sequence: ((end - length) // step.block_size, -(-end // step.block_size))
        for sequence, (num_queries, end) in enumerate(zip(step.query_lengths, step.context_lengths, strict=True))
        if num_queries == 1 and (length := _decode_length(end, window)) <= step.piece_keys
    }
    draft = _GroupDraft([], [])
    for sequence, (first, end) in sorted(ranges.items(), key=lambda item: item[1][0] - item[1][1]):
        if draft.sequences:
            longest = draft.num_blocks
            num_bytes = (len(draft.sequences) + 1) * longest * step.block_size * step.key_bytes
            if num_bytes > GROUP_BYTES or end - first < 0.75 * longest:
                yield draft
                draft = _GroupDraft([], [])
        draft.sequences.append(sequence)
        draft.block_ranges.append((first, end))
    if draft.sequences:
        yield draft


def _decode_length(context_length: int, window: int | None) -> int:
    return context_length if window is None else min(context_length, window)


def _make_group(
    step: _Step, draft: _GroupDraft, window: int | None, keys: torch.Tensor, values: torch.Tensor
) -> DecodeGroup:
    order = sorted(range(len(draft.sequences)), key=draft.sequences.__getitem__)
    sequences = torch.tensor([draft.sequences[i] for i in order])
    first_blocks = torch.tensor([draft.block_ranges[i][0] for i in order])
    ends = torch.tensor([step.context_lengths[draft.sequences[i]] for i in order])
    starts = torch.zeros_like(ends) if window is None else (ends - window).clamp_min_(0)
    table_columns = first_blocks.unsqueeze(1) + torch.arange(draft.num_blocks)
    is_own = table_columns * step.block_size < ends.unsqueeze(1)
    table_columns = torch.where(is_own, table_columns, first_blocks.unsqueeze(1))
    blocks = step.block_tables[sequences].gather(1, table_columns).to(torch.int64)
    first_columns = starts - first_blocks * step.block_size
    end_columns = ends - first_blocks * step.block_size
    num_columns = draft.num_blocks * step.block_size
    columns = _whole_lanes(int(first_columns.min()), int(end_columns.max()), num_columns)
    num_rows = len(order) * num_columns
    is_whole_step = len(order) == len(step.query_lengths)
    group = DecodeGroup(
        num_sequences=len(order),
        columns=columns,
        rows=None if is_whole_step else torch.tensor([step.first_rows[draft.sequences[i]] for i in order]),
        blocks=blocks.view(-1),
        mask=None,
        stale=None,
        keys=keys[:num_rows],
        values=values[:num_rows],
    )
    if int(first_columns.max()) > columns.start or int(end_columns.min()) < columns.stop:
        _hide_padding(group, first_columns, end_columns, num_columns, step)
    return group


def _whole_lanes(first: int, end: int, num_columns: int) -> slice:
    """Columns to read, widened to whole vector registers where the buffer has them.

    Sums then run over the same lanes however many sequences share the group, and a sequence gets the same numbers
    alone and in a batch.
    """
    return slice(first // LANES * LANES, min(-(-end // LANES) * LANES, num_columns))


def _hide_padding(
    group: DecodeGroup,
    first_columns: torch.Tensor,
    end_columns: torch.Tensor,
    num_columns: int,
    step: _Step,
) -> None:
    """Adds mask and stale rows; sequence b reads the columns [first_columns[b], end_columns[b])."""
    columns = torch.arange(group.columns.start, group.columns.stop)
    is_hidden = (columns >= end_columns.unsqueeze(1)) | (columns < first_columns.unsqueeze(1))
    mask = torch.zeros(is_hidden.shape, dtype=step.dtype).masked_fill_(is_hidden, float("-inf"))
    group.mask = mask[:, None, None, :]
    behind = end_columns.unsqueeze(1) + torch.arange(step.block_size - 1)
    is_stale = behind // step.block_size == (end_columns.unsqueeze(1) - 1) // step.block_size
    group.stale = (behind + num_columns * torch.arange(group.num_sequences).unsqueeze(1))[is_stale]


def _make_tiles(step: _Step, window: int | None) -> Iterator[Tile]:
    masks: dict[tuple[int, ...], torch.Tensor] = {}
    for sequence, (num_queries, end) in enumerate(zip(step.query_lengths, step.context_lengths, strict=True)):
        if num_queries == 1 and _decode_length(end, window) <= step.piece_keys:
            continue
        slots = _sequence_slots(step, sequence)
        start = end - num_queries
        first_row = step.first_rows[sequence] - start
        reach = window if window is not None and window < end else None
        size = max(MIN_TILE_QUERIES, -(-num_queries // MAX_TILES))
        if reach is not None:
            size = min(size, MAX_WINDOW_TILE_QUERIES)
        for first in range(start, end, size):
            last = min(first + size, end)
            yield _make_tile(step, slots, first_row + first, first, last, reach, masks)


def _sequence_slots(step: _Step, sequence: int) -> torch.Tensor:
    """Slot of every position of a sequence, [context length] int64."""
    num_tokens = step.context_lengths[sequence]
    num_blocks = -(-num_tokens // step.block_size)
    blocks = step.block_tables[sequence, :num_blocks].to(torch.int64)
    return (blocks.unsqueeze(1) * step.block_size + torch.arange(step.block_size)).view(-1)[:num_tokens]


def _make_tile(
    step: _Step,
    slots: torch.Tensor,
    first_row: int,
    first: int,
    end: int,
    window: int | None,
    masks: dict[tuple[int, ...], torch.Tensor],
) -> Tile:
    """The tile of the queries at the positions [first, end) of a sequence with the given slots."""
    edge_start = 0 if window is None else max(0, first - window + 1)
    far_start = 0 if window is None else min(max(edge_start, end - window), first)
    near_slots, mask = slots[first:end], None
    if window is not None and (edge_start < far_start or end - first > window):
        near_slots = torch.cat((slots[edge_start:far_start], near_slots))
        shape = (end - first, first - edge_start, first - far_start, window)
        if shape not in masks:
            masks[shape] = _window_mask(*shape, step.dtype)
        mask = masks[shape]
    far_slots = torch.split(slots[far_start:first], step.piece_keys) if far_start < first else ()
    return Tile(first_row, end - first, near_slots, mask, tuple(far_slots))


def _window_mask(num_queries: int, edge_back: int, far_back: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """Mask over edge and near; the edge is `edge_back` to `far_back` positions before the first query."""
    queries = torch.arange(num_queries).unsqueeze(1)
    keys = torch.cat((torch.arange(-edge_back, -far_back), torch.arange(num_queries)))
    is_hidden = (keys > queries) | (keys <= queries - window)
    return torch.zeros(is_hidden.shape, dtype=dtype).masked_fill_(is_hidden, float("-inf"))
