// Attention over a paged cache. Included by each instruction set's translation unit.
//
// One way for prompts and for decoding: rows are (query, head) pairs that share a key head, one for decoding without
// groups, hundreds for a tile of a prompt. A block of 64 keys is turned into [head_dim][64] floats and its values into
// [64][head_dim]; both products of rows with these are one micro kernel. Between them stands the online softmax (Milakov
// and Gimelshein, 2018; blocks as in FlashAttention, Dao et al., 2022).
//
// A row's result does not depend on the rows beside it, on how its prompt was cut, or on threads: its scores are sums
// over the dimensions in order, its values sums over the keys in order, blocks and splits begin at multiples of their
// sizes. Keys that it does not see have weight 0 and finite values (zeros), so they change no bit of a sum; a block of
// which it sees nothing is passed over.
#pragma once

#include "paged_attention/cpu/attention_table.h"
#include "paged_attention/cpu/cache_vector.h"

namespace quire::QUIRE_ISA {

constexpr int64_t kBlockKeys = kAttentionBlockKeys;

// Rows and vectors of the micro kernel: as many sums as there are registers.
#if defined(__AVX512F__)
constexpr int kPanelRows = 6;
constexpr int kPanelVectors = 4;
#else
constexpr int kPanelRows = 4;
constexpr int kPanelVectors = 1;
#endif

// out[r][0 .. 16 V) = (adds ? out[r] : 0) + sum over k of a[r][k] * b[k][0 .. 16 V), k in order.
template <int R, int V>
void multiply_panel(const float* const* a, int64_t depth, const float* b, int64_t b_stride, float* const* out,
                    bool adds) {
  f32x16 sums[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = adds ? load<f32x16>(out[r] + v * kLanes) : f32x16{};
  }
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
    f32x16 columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) columns[v] = load<f32x16>(b + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const f32x16 factor = splat(a[r][k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = fma(factor, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out[r] + v * kLanes, sums[r][v]);
  }
}

template <int V>
void multiply_panel_rows(int64_t rows, const float* const* a, int64_t depth, const float* b, int64_t b_stride,
                         float* const* out, bool adds) {
  switch (rows) {
    case 1: return multiply_panel<1, V>(a, depth, b, b_stride, out, adds);
    case 2: return multiply_panel<2, V>(a, depth, b, b_stride, out, adds);
    case 3: return multiply_panel<3, V>(a, depth, b, b_stride, out, adds);
    case 4: return multiply_panel<4, V>(a, depth, b, b_stride, out, adds);
#if defined(__AVX512F__)
    case 5: return multiply_panel<5, V>(a, depth, b, b_stride, out, adds);
    case 6: return multiply_panel<6, V>(a, depth, b, b_stride, out, adds);
#endif
  }
}

// The same for any width in whole vectors.
inline void multiply_rows(int64_t rows, const float* const* a, int64_t depth, const float* b, int64_t b_stride,
                          float* const* out, int64_t num_vectors, bool adds) {
  const float* columns = b;
  float* places[kPanelRows];
  std::copy_n(out, rows, places);
  for (int64_t v = 0; v < num_vectors;) {
    const int64_t count = std::min<int64_t>(kPanelVectors, num_vectors - v);
    switch (count) {
      case 1: multiply_panel_rows<1>(rows, a, depth, columns, b_stride, places, adds); break;
#if defined(__AVX512F__)
      case 2: multiply_panel_rows<2>(rows, a, depth, columns, b_stride, places, adds); break;
      case 3: multiply_panel_rows<3>(rows, a, depth, columns, b_stride, places, adds); break;
      case 4: multiply_panel_rows<4>(rows, a, depth, columns, b_stride, places, adds); break;
#endif
    }
    v += count;
    columns += count * kLanes;
    for (int64_t r = 0; r < rows; ++r) places[r] += count * kLanes;
  }
}

// ---- keys and values of a block ----

// Where the vectors of a block lie; null for those that no row of the tile sees.
struct BlockKeys {
  int64_t index[kBlockKeys];  // of the vector in the cache
  int64_t first = 0;          // the first that is seen
  int64_t end = 0;            // behind the last that is seen
};

inline BlockKeys find_keys(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                           int64_t block_start, int64_t seen_begin, int64_t seen_end) {
  BlockKeys keys;
  keys.first = std::max<int64_t>(0, seen_begin - block_start);
  keys.end = std::min(kBlockKeys, seen_end - block_start);
  const int32_t* table = inputs.block_tables + tile.sequence * inputs.block_table_stride;
  for (int64_t i = keys.first; i < keys.end; ++i) {
    const int64_t position = block_start + i;
    const int64_t slot = table[position / inputs.block_size] * inputs.block_size + position % inputs.block_size;
    keys.index[i] = slot * task.num_kv_heads + tile.kv_head;
  }
  return keys;
}

// Asks for the cache lines of a block: its vectors lie apart, where the processor does not foresee them.
inline void prefetch_keys(const AttentionTask& task, CacheFormat format, const LayerCache& cache,
                          const BlockKeys& keys) {
  const int64_t bytes = task.head_dim * cache_number_bytes(format);
  for (int64_t i = keys.first; i < keys.end; ++i) {
    const int64_t offset = keys.index[i] * bytes;
    for (int64_t line = 0; line < bytes; line += static_cast<int64_t>(kCacheLine)) {
      __builtin_prefetch(static_cast<const uint8_t*>(cache.keys.data) + offset + line);
      __builtin_prefetch(static_cast<const uint8_t*>(cache.values.data) + offset + line);
    }
  }
}

// Up to 16 numbers of a vector of the cache from dimension `start` on; zeros behind them.
QUIRE_INLINE f32x16 read_cache(CacheFormat format, const Cache& cache, int64_t index, int64_t head_dim,
                               int64_t start) {
  const int count = static_cast<int>(std::min<int64_t>(kLanes, head_dim - start));
  const int64_t offset = index * head_dim + start;
  if (format == CacheFormat::kFloat32) {
    const float* from = static_cast<const float*>(cache.data) + offset;
    return count == kLanes ? load<f32x16>(from) : load_some(from, count);
  }
  if (format == CacheFormat::kInt8) {
    i8x16 numbers{};
    std::memcpy(&numbers, static_cast<const int8_t*>(cache.data) + offset, static_cast<size_t>(count));
    return to_float(widen(numbers)) * cache.scales[index];
  }
  u16x16 halves{};
  const uint16_t* from = static_cast<const uint16_t*>(cache.data) + offset;
  if (count == kLanes) {
    halves = load<u16x16>(from);
  } else {
    std::memcpy(&halves, from, static_cast<size_t>(count) * sizeof(uint16_t));
  }
  return format == CacheFormat::kBfloat16 ? from_bfloat16(halves) : from_float16(halves);
}

// How many dimensions of a key are turned at a time: pairs of bfloat16 halve the work.
inline int64_t turned_dims(CacheFormat format, int64_t head_dim) {
  return format == CacheFormat::kBfloat16 && head_dim % 32 == 0 ? 32 : kLanes;
}

// Sixteen keys from `start` on, as many dimensions from `dim` on as `turned_dims` says: row i is dimension dim + i of the
// keys, or the dimensions dim + 2 i and dim + 2 i + 1 in pairs. Keys that are not seen are zeros.
QUIRE_INLINE void turn_keys(CacheFormat format, bool in_pairs, const Cache& cache, const BlockKeys& keys,
                            int64_t head_dim, int64_t start, int64_t dim, f32x16 (&rows)[16]) {
  const uint16_t* halves = static_cast<const uint16_t*>(cache.data) + dim;
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) {
    rows[i] = f32x16{};
    if (start + i < keys.first || start + i >= keys.end) continue;
    const int64_t index = keys.index[start + i];
    rows[i] = in_pairs ? load<f32x16>(halves + index * head_dim) : read_cache(format, cache, index, head_dim, dim);
  }
  transpose(rows);
}

// [head_dim][64] floats. Sixteens of which none is seen are left out at the end.
inline void load_keys(const AttentionTask& task, CacheFormat format, const Cache& cache, const BlockKeys& keys,
                      float* out) {
  const int64_t step = turned_dims(format, task.head_dim);
  f32x16 rows[16];
  for (int64_t start = 0; start < keys.end; start += kLanes) {
    for (int64_t dim = 0; dim < task.head_dim; dim += step) {
      turn_keys(format, step == 32, cache, keys, task.head_dim, start, dim, rows);
      float* place = out + dim * kBlockKeys + start;
      const int64_t count = std::min<int64_t>(kLanes, task.head_dim - dim);
      for (int64_t i = 0; i < count; ++i) {
        if (step == 32) {
          store(place + 2 * i * kBlockKeys, low_bfloat16(rows[i]));
          store(place + (2 * i + 1) * kBlockKeys, high_bfloat16(rows[i]));
        } else {
          store(place + i * kBlockKeys, rows[i]);
        }
      }
    }
  }
}

// [64][width] floats, width in whole vectors; only those that are seen are written, and zeros before them.
inline void load_values(const AttentionTask& task, CacheFormat format, const Cache& cache, const BlockKeys& keys,
                        int64_t width, float* out) {
  std::fill_n(out, keys.first * width, 0.0f);
  for (int64_t i = keys.first; i < keys.end; ++i) {
    for (int64_t dim = 0; dim < task.head_dim; dim += kLanes) {
      store(out + i * width + dim, read_cache(format, cache, keys.index[i], task.head_dim, dim));
    }
  }
}

// ---- few rows: keys and values go from the cache straight into the products, in the same order ----

template <CacheFormat kFormat, int R>
void score_rows(const Cache& cache, const BlockKeys& keys, int64_t head_dim, const float* const* queries,
                float* const* scores) {
  const int64_t step = turned_dims(kFormat, head_dim);
  f32x16 rows[16];
  for (int64_t start = 0; start < keys.end; start += kLanes) {
    f32x16 sums[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) sums[r] = f32x16{};
    for (int64_t dim = 0; dim < head_dim; dim += step) {
      turn_keys(kFormat, step == 32, cache, keys, head_dim, start, dim, rows);
      if (step == 32) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          const f32x16 even = low_bfloat16(rows[i]), odd = high_bfloat16(rows[i]);
#pragma GCC unroll 6
          for (int r = 0; r < R; ++r) {
            const float* query = queries[r] + dim + 2 * i;
            sums[r] = fma(splat(query[1]), odd, fma(splat(query[0]), even, sums[r]));
          }
        }
        continue;
      }
      const int64_t count = std::min<int64_t>(kLanes, head_dim - dim);
      for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) sums[r] = fma(splat(queries[r][dim + i]), rows[i], sums[r]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) store(scores[r] + start, sums[r]);
  }
}

// Dimensions [dim, dim + 16 V) of values, weighted, into the sums of R rows.
template <CacheFormat kFormat, int R, int V>
QUIRE_INLINE void add_value_columns(const Cache& cache, const BlockKeys& keys, int64_t head_dim, int64_t dim,
                                    const float* const* weights, float* const* out) {
  f32x16 sums[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = load<f32x16>(out[r] + dim + v * kLanes);
  }
  for (int64_t key = keys.first; key < keys.end; ++key) {
    f32x16 columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      columns[v] = read_cache(kFormat, cache, keys.index[key], head_dim, dim + v * kLanes);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const f32x16 weight = splat(weights[r][key]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = fma(weight, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out[r] + dim + v * kLanes, sums[r][v]);
  }
}

template <CacheFormat kFormat, int R>
void add_values(const Cache& cache, const BlockKeys& keys, int64_t head_dim, const float* const* weights,
                float* const* out) {
  int64_t dim = 0;
  for (; dim + kPanelVectors * kLanes <= head_dim; dim += kPanelVectors * kLanes) {
    add_value_columns<kFormat, R, kPanelVectors>(cache, keys, head_dim, dim, weights, out);
  }
  for (; dim < head_dim; dim += kLanes) add_value_columns<kFormat, R, 1>(cache, keys, head_dim, dim, weights, out);
}

// What is done with the keys and with the values of a block, for one format and number of rows.
struct FewRows {
  void (*score)(const Cache& cache, const BlockKeys& keys, int64_t head_dim, const float* const* queries,
                float* const* scores);
  void (*add)(const Cache& cache, const BlockKeys& keys, int64_t head_dim, const float* const* weights,
              float* const* out);
};

template <CacheFormat kFormat>
FewRows few_rows_of(int64_t count) {
  switch (count) {
    case 1: return {score_rows<kFormat, 1>, add_values<kFormat, 1>};
    case 2: return {score_rows<kFormat, 2>, add_values<kFormat, 2>};
    case 3: return {score_rows<kFormat, 3>, add_values<kFormat, 3>};
#if defined(__AVX512F__)
    case 5: return {score_rows<kFormat, 5>, add_values<kFormat, 5>};
    case 6: return {score_rows<kFormat, 6>, add_values<kFormat, 6>};
#endif
    default: return {score_rows<kFormat, 4>, add_values<kFormat, 4>};
  }
}

inline FewRows few_rows(CacheFormat format, int64_t count) {
  switch (format) {
    case CacheFormat::kFloat32: return few_rows_of<CacheFormat::kFloat32>(count);
    case CacheFormat::kBfloat16: return few_rows_of<CacheFormat::kBfloat16>(count);
    case CacheFormat::kFloat16: return few_rows_of<CacheFormat::kFloat16>(count);
    default: return few_rows_of<CacheFormat::kInt8>(count);
  }
}

// ---- softmax ----

// Scores of a row in a block become weights, its running best, total and values are rescaled. `seen` are the block's
// keys that it sees.
inline void weigh_scores(const AttentionTask& task, float* scores, Span seen, PartialAttention* row, int64_t width) {
  f32x16 tops = splat(-INFINITY);
  f32x16 parts[kBlockKeys / kLanes];
  for (int64_t v = 0; v < kBlockKeys / kLanes; ++v) {
    parts[v] = load<f32x16>(scores + v * kLanes) * task.scale;
    if (task.soft_cap > 0.0f) parts[v] = tanh(parts[v] / task.soft_cap) * task.soft_cap;
    if (seen.begin > v * kLanes || seen.end < (v + 1) * kLanes) {
      parts[v] = keep_lanes(parts[v], seen.begin - v * kLanes, seen.end - v * kLanes, -INFINITY);
    }
    tops = max(parts[v], tops);
  }
  const float top = largest(tops), best = top > row->best ? top : row->best;
  f32x16 sums{};
  for (int64_t v = 0; v < kBlockKeys / kLanes; ++v) {
    parts[v] = exp(parts[v] - best);
    store(scores + v * kLanes, parts[v]);
    sums += parts[v];
  }
  if (best > row->best) {
    const float factor = first_lane(exp(splat(row->best - best)));
    row->total *= factor;
    for (int64_t i = 0; i < width; i += kLanes) {
      store(row->values() + i, load<f32x16>(row->values() + i) * factor);
    }
    row->best = best;
  }
  row->total += sum(sums);
}

// Adds `part` to `whole`, which may be empty; both have `width` values.
inline void merge_partial(const PartialAttention& part, int64_t width, PartialAttention* whole) {
  if (part.total == 0.0f) return;
  const float best = part.best > whole->best ? part.best : whole->best;
  const f32x16 factors = exp(load_some(&whole->best, 1) - best), others = exp(load_some(&part.best, 1) - best);
  const float factor = whole->total == 0.0f ? 0.0f : first_lane(factors), other = first_lane(others);
  for (int64_t i = 0; i < width; i += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, width - i));
    const f32x16 sums = load_some(whole->values() + i, count) * factor;
    store_some(whole->values() + i, fma(load_some(part.values() + i, count), splat(other), sums), count);
  }
  whole->total = whole->total * factor + part.total * other;
  whole->best = best;
}

inline void clear_partial(PartialAttention* row, int64_t width) {
  row->best = -INFINITY;
  row->total = 0.0f;
  std::fill_n(row->values(), width, 0.0f);
}

// ---- tiles ----

// A tile's rows and the memory for them. A row's partial result has its values in whole vectors.
struct TileMemory {
  int64_t num_rows;
  int64_t width;  // head_dim in whole vectors
  int64_t partial_stride;
  float* keys;      // [head_dim][64]
  float* values;    // [64][width]
  float* scores;    // [rows][64]
  uint8_t* splits;  // partial results of a split, by row
  uint8_t* wholes;  // and of all splits so far

  PartialAttention* split(int64_t row) const {
    return reinterpret_cast<PartialAttention*>(splits + row * partial_stride);
  }
  PartialAttention* whole(int64_t row) const {
    return reinterpret_cast<PartialAttention*>(wholes + row * partial_stride);
  }
};

inline TileMemory lay_out_tile(const AttentionTask& task, int64_t num_rows, Scratch& scratch) {
  TileMemory memory;
  memory.num_rows = num_rows;
  memory.width = divide_up(task.head_dim, kLanes) * kLanes;
  memory.partial_stride = partial_bytes(memory.width);
  const int64_t num_floats = (task.head_dim + num_rows) * kBlockKeys + kBlockKeys * memory.width;
  scratch.memory.reserve(static_cast<size_t>(num_floats * static_cast<int64_t>(sizeof(float)) +
                                             2 * num_rows * memory.partial_stride));
  scratch.owner = nullptr;
  memory.keys = scratch.memory.as<float>();
  memory.values = memory.keys + task.head_dim * kBlockKeys;
  memory.scores = memory.values + kBlockKeys * memory.width;
  memory.splits = reinterpret_cast<uint8_t*>(memory.scores + num_rows * kBlockKeys);
  memory.wholes = memory.splits + num_rows * memory.partial_stride;
  return memory;
}

// The positions that the query of a row sees.
inline Span seen_by(const AttentionTask& task, const AttentionTile& tile, int64_t row) {
  const int64_t position = tile.first_position + row / task.group_size();
  return {task.sliding_window > 0 ? std::max<int64_t>(0, position + 1 - task.sliding_window) : 0, position + 1};
}

inline const float* query_of(const AttentionTask& task, const AttentionTile& tile, const float* query, int64_t row) {
  const int64_t group = task.group_size();
  const int64_t token = tile.first_row + row / group, head = tile.kv_head * group + row % group;
  return query + (token * task.num_heads + head) * task.head_dim;
}

// A block of keys and values: in the tile's memory, or where a tile has few rows in the cache.
struct Block {
  int64_t start;  // position of its first key
  BlockKeys keys;
  bool is_in_memory;
};

// Adds a block to the rows [begin, end) of a tile, at most kPanelRows.
inline void attend_block_rows(const AttentionTask& task, const AttentionTile& tile, CacheFormat format,
                              const LayerCache& cache, const TileMemory& memory, const float* query,
                              const Block& block, int64_t begin, int64_t end) {
  const float* queries[kPanelRows];
  float* scores[kPanelRows];
  float* sums[kPanelRows];
  Span inside[kPanelRows];
  PartialAttention* partials[kPanelRows];
  int64_t count = 0, last_key = 0;
  for (int64_t row = begin; row < end; ++row) {
    const Span seen = seen_by(task, tile, row);
    inside[count] = {std::max<int64_t>(0, seen.begin - block.start), std::min(kBlockKeys, seen.end - block.start)};
    if (inside[count].begin >= inside[count].end) continue;
    last_key = std::max(last_key, inside[count].end);
    queries[count] = query_of(task, tile, query, row);
    scores[count] = memory.scores + row * kBlockKeys;
    partials[count] = memory.split(row);
    sums[count] = partials[count]->values();
    ++count;
  }
  if (count == 0) return;
  const FewRows direct = few_rows(format, count);
  if (block.is_in_memory) {
    multiply_rows(count, queries, task.head_dim, memory.keys, kBlockKeys, scores, divide_up(block.keys.end, kLanes),
                  false);
  } else {
    direct.score(cache.keys, block.keys, task.head_dim, queries, scores);
  }
  for (int64_t i = 0; i < count; ++i) weigh_scores(task, scores[i], inside[i], partials[i], memory.width);
  if (block.is_in_memory) {
    multiply_rows(count, scores, last_key, memory.values, memory.width, sums, memory.width / kLanes, true);
  } else {
    direct.add(cache.values, block.keys, task.head_dim, scores, sums);
  }
}

// One split for all rows of a tile, into their partial results.
inline void attend_split_rows(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                              const LayerCache& cache, const float* query, int64_t split, const TileMemory& memory) {
  for (int64_t row = 0; row < memory.num_rows; ++row) clear_partial(memory.split(row), memory.width);
  const int64_t begin = std::max(seen_by(task, tile, 0).begin, split * kAttentionSplitKeys);
  const int64_t end = std::min(seen_by(task, tile, memory.num_rows - 1).end, (split + 1) * kAttentionSplitKeys);
  int64_t start = begin / kBlockKeys * kBlockKeys;
  if (start >= end) return;
  const bool has_few_rows = memory.num_rows <= kPanelRows;
  BlockKeys next = find_keys(task, tile, inputs, start, begin, end);
  for (; start < end; start += kBlockKeys) {
    const Block block{start, next, !has_few_rows};
    if (start + kBlockKeys < end) {
      next = find_keys(task, tile, inputs, start + kBlockKeys, begin, end);
      prefetch_keys(task, inputs.cache_format, cache, next);
    }
    if (block.is_in_memory) {
      load_keys(task, inputs.cache_format, cache.keys, block.keys, memory.keys);
      load_values(task, inputs.cache_format, cache.values, block.keys, memory.width, memory.values);
    }
    for (int64_t row = 0; row < memory.num_rows; row += kPanelRows) {
      attend_block_rows(task, tile, inputs.cache_format, cache, memory, query, block, row,
                        std::min<int64_t>(row + kPanelRows, memory.num_rows));
    }
  }
}

inline void write_attended(const PartialAttention& row, int64_t head_dim, float* out) {
  const float inverse = 1.0f / row.total;
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, head_dim - i));
    store_some(out + i, load_some(row.values() + i, count) * inverse, count);
  }
}

inline void attend_tile(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                        const LayerCache& cache, const float* query, float* out, Scratch& scratch) {
  const TileMemory memory = lay_out_tile(task, tile.num_queries * task.group_size(), scratch);
  const int64_t first = seen_by(task, tile, 0).begin / kAttentionSplitKeys;
  const int64_t last = (seen_by(task, tile, memory.num_rows - 1).end - 1) / kAttentionSplitKeys;
  for (int64_t row = 0; row < memory.num_rows; ++row) clear_partial(memory.whole(row), memory.width);
  for (int64_t split = first; split <= last; ++split) {
    attend_split_rows(task, tile, inputs, cache, query, split, memory);
    for (int64_t row = 0; row < memory.num_rows; ++row) {
      merge_partial(*memory.split(row), memory.width, memory.whole(row));
    }
  }
  for (int64_t row = 0; row < memory.num_rows; ++row) {
    const int64_t offset = query_of(task, tile, query, row) - query;
    write_attended(*memory.whole(row), task.head_dim, out + offset);
  }
}

inline void attend_split(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                         const LayerCache& cache, const float* query, int64_t split, uint8_t* partials,
                         Scratch& scratch) {
  const TileMemory memory = lay_out_tile(task, task.group_size(), scratch);
  attend_split_rows(task, tile, inputs, cache, query, split, memory);
  for (int64_t row = 0; row < memory.num_rows; ++row) {
    std::memcpy(partials + row * partial_bytes(task.head_dim), memory.split(row),
                static_cast<size_t>(partial_bytes(task.head_dim)));
  }
}

inline void merge_splits(const AttentionTask& task, const uint8_t* partials, int64_t stride, int64_t num_splits,
                         float* out, Scratch& scratch) {
  scratch.memory.reserve(static_cast<size_t>(partial_bytes(task.head_dim)));
  scratch.owner = nullptr;
  PartialAttention* whole = scratch.memory.as<PartialAttention>();
  clear_partial(whole, task.head_dim);
  for (int64_t split = 0; split < num_splits; ++split) {
    merge_partial(*reinterpret_cast<const PartialAttention*>(partials + split * stride), task.head_dim, whole);
  }
  write_attended(*whole, task.head_dim, out);
}

}  // namespace quire::QUIRE_ISA
