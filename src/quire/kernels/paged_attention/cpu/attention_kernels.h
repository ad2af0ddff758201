// Attention over blocks of keys. Included by each instruction set's translation unit.
//
// One way of working serves a single token and a prompt: the rows of a tile, its queries times the heads that share a
// key head, meet blocks of 64 keys (made ready once for all rows), softmax being kept up to date block by block within
// a segment of 512; segments are merged in order.
//
// A row's result depends on nothing but the row, its keys and their positions. Blocks and segments begin at multiples
// of their size in the sequence. In a block, every number is one chain over head dims or keys (attention_panels.h).
// A row that does not see a key gives it the weight 0, which adds 0 to a sum and leaves the best score; a block or
// segment that it does not see at all multiplies its sums by 1 and adds 0. So it is all the same whether such keys,
// blocks and segments are passed over or worked on for another row's sake. (They may turn -0 into 0: the result's
// zeros are made positive.)
#pragma once

#include <utility>

#include "paged_attention/cpu/attention_panels.h"

namespace quire::QUIRE_ISA {

// What one tile is worked on with, in a thread's scratch memory.
struct TileWork {
  const AttentionTask& task;
  const AttentionTile& tile;
  const StepInputs& inputs;
  const LayerCache& cache;
  int64_t num_rows;
  int64_t width;       // of sums and values: head_dim, padded
  int64_t panel_rows;  // rows that are worked on together
  float* query;        // [rows, head_dim], scaled
  float* keys;         // [head_dim, kBlockKeys]
  float* values;       // [kBlockKeys, width]
  float* totals;       // [rows, kLanes]
  float* partials[2];  // memory of AttentionPartial

  AttentionPartial partial(int index) const { return {partials[index], num_rows, width}; }
  int64_t vector_bytes() const { return task.head_dim * cache_number_bytes(inputs.cache_format); }
  int64_t position(int64_t row) const { return tile.first_position + row / task.group_size(); }
};

inline TileWork make_work(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                          const LayerCache& cache, const float* query, Scratch& scratch) {
  const int64_t rows = tile.num_queries * task.group_size(), width = padded_width(task.head_dim);
  const int64_t panels = divide_up(rows, kMaxPanelRows);
  TileWork work{task, tile, inputs, cache, rows, width, divide_up(rows, panels), {}, {}, {}, {}, {}};
  const int64_t partial = divide_up(AttentionPartial::num_floats(rows, width), kLanes) * kLanes;
  const int64_t sizes[] = {task.head_dim * kBlockKeys, kBlockKeys * width, rows * kLanes, partial, partial,
                           rows * task.head_dim};
  float** places[] = {&work.keys, &work.values, &work.totals, &work.partials[0], &work.partials[1], &work.query};
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  scratch.memory.reserve(static_cast<size_t>(total) * sizeof(float));
  float* next = scratch.memory.as<float>();
  for (int i = 0; i < 6; ++i) {
    *places[i] = next;
    next += sizes[i];
  }
  const int64_t row_width = task.group_size() * task.head_dim;
  for (int64_t q = 0; q < tile.num_queries; ++q) {
    const float* from = query + ((tile.first_row + q) * task.num_kv_heads + tile.kv_head) * row_width;
    for (int64_t i = 0; i < row_width; ++i) work.query[q * row_width + i] = from[i] * task.scale;
  }
  return work;
}

// Some rows of a tile and the part of a block that they see, in vectors of 16 keys.
struct RowGroup {
  int64_t first_row;
  int num_rows;
  int begin;  // keys of the block that some row sees
  int end;
  int first_vector;
  int end_vector;
};

// ---- scores ----

// Scores that a row does not see become -infinity.
inline void mask_scores(const TileWork& work, const KeyBlock& block, const RowGroup& group, float* scores) {
  const i32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int64_t last_position = work.position(group.first_row + group.num_rows - 1);
  const bool sees_first = work.task.first_key(last_position) <= block.first_position + group.first_vector * kLanes;
  const bool sees_last = work.position(group.first_row) + 1 >= block.first_position + group.end_vector * kLanes;
  if (sees_first && sees_last) return;
  for (int r = 0; r < group.num_rows; ++r) {
    const int64_t position = work.position(group.first_row + r);
    const int64_t first = std::max<int64_t>(0, work.task.first_key(position) - block.first_position);
    const i32x16 begin = splat(static_cast<int32_t>(std::min<int64_t>(first, kBlockKeys)));
    const i32x16 last = splat(static_cast<int32_t>(std::min<int64_t>(position - block.first_position, kBlockKeys)));
    for (int v = group.first_vector; v < group.end_vector; ++v) {
      float* place = scores + r * kBlockKeys + v * kLanes;
      const i32x16 key = lanes + v * kLanes;
      store(place, key >= begin && key <= last ? load<f32x16>(place) : splat(-INFINITY));
    }
  }
}

inline void multiply_columns(const RowGroup& group, const float* factors, float* scores) {
  for (int r = 0; r < group.num_rows; ++r) {
    for (int v = group.first_vector; v < group.end_vector; ++v) {
      float* place = scores + r * kBlockKeys + v * kLanes;
      store(place, load<f32x16>(place) * load<f32x16>(factors + v * kLanes));
    }
  }
}

inline void cap_scores(const RowGroup& group, float cap, float* scores) {
  for (int r = 0; r < group.num_rows; ++r) {
    for (int v = group.first_vector; v < group.end_vector; ++v) {
      float* place = scores + r * kBlockKeys + v * kLanes;
      store(place, cap * tanh(load<f32x16>(place) / cap));
    }
  }
}

inline void score_keys(const TileWork& work, const RowPanels& panels, const RowGroup& group, float* scores) {
  constexpr int kWide = kPanelRegisters * kRegisterLanes;
  const float* query = work.query + group.first_row * work.task.head_dim;
  const int end = group.end_vector * kLanes;
  int key = group.first_vector * kLanes;
  for (; key + kWide <= end; key += kWide) panels.wide_score(query, work.task.head_dim, work.keys + key, scores + key);
  for (; key < end; key += kRegisterLanes) {
    panels.narrow_score(query, work.task.head_dim, work.keys + key, scores + key);
  }
}

// ---- softmax ----

// Scores become weights, relative to the best score of each row so far; `old` are the factors of what was summed up
// before. Never inlined: all callers share one compiled copy, and with it one rounding.
__attribute__((noinline)) inline void weigh_scores(const RowGroup& group, float* scores, float* best, float* totals,
                                                   float* old) {
  constexpr int kParts = kLanes / kRegisterLanes;
  alignas(64) float drops[kLanes] = {};
  float* row_totals = scores + kMaxPanelRows * kBlockKeys;
  for (int r = 0; r < group.num_rows; ++r) {
    float* row = scores + r * kBlockKeys;
    Floats tops = broadcast(best[r]);
    for (int key = group.first_vector * kLanes; key < group.end_vector * kLanes; key += kRegisterLanes) {
      tops = max_in_register(load<Floats>(row + key), tops);
    }
    const float top = largest_in_register(tops);
    // -infinity minus itself is no number; e^(-infinity - 0) is 0, as it should be where nothing was seen yet.
    const float base = top == -INFINITY ? 0.0f : top;
    drops[r] = best[r] - base;
    best[r] = top;
    Floats total[kParts] = {};
    for (int key = group.first_vector * kLanes; key < group.end_vector * kLanes; key += kLanes) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        float* place = row + key + part * kRegisterLanes;
        const Floats weight = exp_in_register(load<Floats>(place) - base);
        store(place, weight);
        total[part] += weight;
      }
    }
    store(row_totals + r * kLanes, load<f32x16>(total));
  }
  store(drops, exp(load<f32x16>(drops)));
  for (int r = 0; r < group.num_rows; ++r) {
    old[r] = drops[r];
    for (int i = 0; i < kLanes; i += kRegisterLanes) {
      float* place = totals + r * kLanes + i;
      store(place, multiply_add(load<Floats>(place), broadcast(drops[r]), load<Floats>(row_totals + r * kLanes + i)));
    }
  }
}

// ---- values ----

inline void add_values(const TileWork& work, const RowPanels& panels, const RowGroup& group,
                       const uint8_t* const* rows, const float* weights, const float* old, float* sums) {
  constexpr int kWide = kPanelRegisters * kRegisterLanes;
  const ValueRows values{rows, group.begin, group.end};
  int64_t column = 0;
  for (; column + kWide <= work.width; column += kWide) {
    panels.wide_value(weights, values, column, old, sums, work.width);
  }
  for (; column < work.width; column += kRegisterLanes) {
    panels.narrow_value(weights, values, column, old, sums, work.width);
  }
}

// ---- blocks and segments ----

inline RowGroup group_of(const TileWork& work, const KeyBlock& block, int64_t first_row) {
  RowGroup group;
  group.first_row = first_row;
  group.num_rows = static_cast<int>(std::min(work.panel_rows, work.num_rows - first_row));
  const int64_t begin = work.task.first_key(work.position(first_row)) - block.first_position;
  const int64_t end = work.position(first_row + group.num_rows - 1) + 1 - block.first_position;
  group.begin = static_cast<int>(std::max<int64_t>(0, begin));
  group.end = static_cast<int>(std::min<int64_t>(kBlockKeys, end));
  group.first_vector = group.begin / kLanes;
  group.end_vector = (group.end + kLanes - 1) / kLanes;
  return group;
}

// What becomes of scores, however they were worked out.
inline void finish_group(const TileWork& work, const RowPanels& panels, const KeyBlock& block, const RowGroup& group,
                         const uint8_t* const* values, const AttentionPartial& partial, float* scores) {
  float old[kMaxPanelRows];
  const bool has_scales = work.inputs.cache_format == CacheFormat::kInt8;
  if (has_scales) multiply_columns(group, block.key_scales, scores);
  if (work.task.soft_cap > 0.0f) cap_scores(group, work.task.soft_cap, scores);
  mask_scores(work, block, group, scores);
  weigh_scores(group, scores, partial.best + group.first_row, work.totals + group.first_row * kLanes, old);
  if (has_scales) multiply_columns(group, block.value_scales, scores);
  add_values(work, panels, group, values, scores, old, partial.sums + group.first_row * work.width);
}

constexpr int kScoreFloats = kMaxPanelRows * (kBlockKeys + kLanes);

// Many rows: keys and values are made ready in scratch memory.
template <CacheFormat kFormat>
inline void attend_block(const TileWork& work, const KeyBlock& block, const AttentionPartial& partial) {
  alignas(64) float scores[kScoreFloats];
  const uint8_t* values[kBlockKeys];
  for (int key = block.begin / kLanes * kLanes; key < block.end; key += kLanes) {
    transpose_keys<kFormat>(block, work.task.head_dim, key, work.keys);
  }
  copy_values<kFormat>(block, work.task.head_dim, work.width, work.values);
  for (int key = 0; key < kBlockKeys; ++key) {
    values[key] = reinterpret_cast<const uint8_t*>(work.values + key * work.width);
  }
  for (int64_t row = 0; row < work.num_rows; row += work.panel_rows) {
    const RowGroup group = group_of(work, block, row);
    if (group.begin >= group.end) continue;
    const RowPanels& panels = kPanels<CacheFormat::kFloat32>[group.num_rows - 1];
    score_keys(work, panels, group, scores);
    finish_group(work, panels, block, group, values, partial, scores);
  }
}

// So few rows that they are worked on together: keys come straight from the cache, and values where whole registers
// end with the vectors. Meanwhile the next block, if there is one, is fetched.
template <CacheFormat kFormat>
inline void attend_block_directly(const TileWork& work, const KeyBlock& block, const KeyBlock* next,
                                  const AttentionPartial& partial) {
  alignas(64) float scores[kScoreFloats];
  const int64_t vector_bytes = work.task.head_dim * kNumberBytes<kFormat>;
  const RowGroup group = group_of(work, block, 0);
  const RowPanels& panels = kPanels<kFormat>[group.num_rows - 1];
  const int first = group.first_vector * kLanes, end = group.end_vector * kLanes;
  // A few lines with each register of keys: there are few places for lines under way.
  const int share = static_cast<int>(divide_up(kBlockKeys * kRegisterLanes, end - first));
  for (int key = first, fetched = 0; key < end; key += kRegisterLanes, fetched += share) {
    if (next != nullptr) prefetch_part(*next, fetched, std::min(fetched + share, kBlockKeys), vector_bytes);
    panels.cached_score(work.query, work.task.head_dim, block.keys + key, scores + key);
  }
  if (work.task.head_dim == work.width) {
    finish_group(work, panels, block, group, block.values, partial, scores);
    return;
  }
  const uint8_t* values[kBlockKeys];
  copy_values<kFormat>(block, work.task.head_dim, work.width, work.values);
  for (int key = 0; key < kBlockKeys; ++key) {
    values[key] = reinterpret_cast<const uint8_t*>(work.values + key * work.width);
  }
  finish_group(work, kPanels<CacheFormat::kFloat32>[group.num_rows - 1], block, group, values, partial, scores);
}

template <CacheFormat kFormat>
inline void attend_block(const TileWork& work, const KeyBlock& block, const KeyBlock* next,
                         const AttentionPartial& partial) {
  if (work.num_rows <= kMaxPanelRows) {
    attend_block_directly<kFormat>(work, block, next, partial);
  } else {
    attend_block<kFormat>(work, block, partial);
  }
}

inline void attend_block(const TileWork& work, const KeyBlock& block, const KeyBlock* next,
                         const AttentionPartial& partial) {
  switch (work.inputs.cache_format) {
    case CacheFormat::kFloat32: return attend_block<CacheFormat::kFloat32>(work, block, next, partial);
    case CacheFormat::kBfloat16: return attend_block<CacheFormat::kBfloat16>(work, block, next, partial);
    case CacheFormat::kFloat16: return attend_block<CacheFormat::kFloat16>(work, block, next, partial);
    case CacheFormat::kInt8: return attend_block<CacheFormat::kInt8>(work, block, next, partial);
  }
}

inline void attend_keys(const TileWork& work, int64_t segment, const AttentionPartial& partial) {
  const int64_t first_key = std::max(segment * kSegmentKeys, work.task.first_key(work.tile.first_position));
  const int64_t end = std::min((segment + 1) * kSegmentKeys, work.tile.end_position());
  std::fill_n(partial.sums, work.num_rows * work.width, 0.0f);
  std::fill_n(partial.best, work.num_rows, -INFINITY);
  std::fill_n(work.totals, work.num_rows * kLanes, 0.0f);
  KeyBlock blocks[2];
  KeyBlock *block = &blocks[0], *next = &blocks[1];
  const int64_t begin = first_key / kBlockKeys * kBlockKeys;
  find_block(work.task, work.tile, work.inputs, work.cache, begin, block);
  if (work.tile.is_first_head) prefetch_part(*block, 0, kBlockKeys, work.vector_bytes());
  for (int64_t first = begin; first < end; first += kBlockKeys, std::swap(block, next)) {
    const bool is_last = first + kBlockKeys >= end, has_next = !is_last || !work.tile.is_last_head;
    if (!is_last) {
      find_block(work.task, work.tile, work.inputs, work.cache, first + kBlockKeys, next);
    } else if (has_next) {
      AttentionTile neighbour = work.tile;
      ++neighbour.kv_head;
      find_block(work.task, neighbour, work.inputs, work.cache, begin, next);
    }
    attend_block(work, *block, has_next ? next : nullptr, partial);
  }
  for (int64_t row = 0; row < work.num_rows; ++row) partial.totals[row] = sum(load<f32x16>(work.totals + row * kLanes));
}

// Adds the next segment to those before it.
__attribute__((noinline)) inline void merge_partial(const AttentionPartial& merged, const AttentionPartial& next,
                                                    int64_t num_rows, int64_t width) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const float top = std::max(merged.best[row], next.best[row]);
    const float base = top == -INFINITY ? 0.0f : top;
    const float old = exp(splat(merged.best[row] - base))[0], fresh = exp(splat(next.best[row] - base))[0];
    merged.best[row] = top;
    merged.totals[row] = merged.totals[row] * old + next.totals[row] * fresh;
    for (int64_t i = row * width; i < (row + 1) * width; i += kLanes) {
      const f32x16 kept = load<f32x16>(merged.sums + i) * old;
      store(merged.sums + i, fma(load<f32x16>(next.sums + i), splat(fresh), kept));
    }
  }
}

inline void write_rows(const AttentionTask& task, const AttentionTile& tile, const AttentionPartial& partial,
                       float* out) {
  const int64_t size = task.head_dim, width = padded_width(size), group_size = task.group_size();
  for (int64_t row = 0; row < tile.num_queries * group_size; ++row) {
    const int64_t token = tile.first_row + row / group_size;
    float* place = out + (token * task.num_heads + tile.kv_head * group_size + row % group_size) * size;
    const float inverse = 1.0f / partial.totals[row];
    for (int64_t i = 0; i < size; ++i) {
      const float number = partial.sums[row * width + i] * inverse;
      place[i] = number == 0.0f ? 0.0f : number;
    }
  }
}

inline void attend_segment(const AttentionTask& task, const AttentionTile& tile, int64_t segment,
                           const StepInputs& inputs, const LayerCache& cache, const float* query, float* partial,
                           Scratch& scratch) {
  const TileWork work = make_work(task, tile, inputs, cache, query, scratch);
  attend_keys(work, segment, AttentionPartial(partial, work.num_rows, work.width));
}

inline void merge_segments(const AttentionTask& task, const AttentionTile& tile, float* partials, int64_t stride,
                           int64_t num_segments, float* out) {
  const int64_t rows = tile.num_queries * task.group_size(), width = padded_width(task.head_dim);
  const AttentionPartial merged(partials, rows, width);
  for (int64_t i = 1; i < num_segments; ++i) {
    merge_partial(merged, AttentionPartial(partials + i * stride, rows, width), rows, width);
  }
  write_rows(task, tile, merged, out);
}

inline void attend_tile(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                        const LayerCache& cache, const float* query, float* out, Scratch& scratch) {
  const TileWork work = make_work(task, tile, inputs, cache, query, scratch);
  const int64_t first = task.first_key(tile.first_position) / kSegmentKeys;
  const int64_t end = divide_up(tile.end_position(), kSegmentKeys);
  for (int64_t segment = first; segment < end; ++segment) {
    attend_keys(work, segment, work.partial(segment > first));
    if (segment > first) merge_partial(work.partial(0), work.partial(1), work.num_rows, work.width);
  }
  write_rows(task, tile, work.partial(0), out);
}

}  // namespace quire::QUIRE_ISA
