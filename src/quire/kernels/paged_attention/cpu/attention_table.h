#pragma once

#include <cstdint>

#include "native/cpu/step.h"

namespace quire {

// Attention of a layer; see `quire.kernels.paged_attention.attend`.
struct AttentionTask {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  float scale;
  int64_t sliding_window = 0;  // positions that a token sees, itself included; 0 for all
  float soft_cap = 0.0f;       // 0 for none

  int64_t group_size() const { return num_heads / num_kv_heads; }
};

// Consecutive queries of one sequence, for one key head and the query heads that share it.
struct AttentionTile {
  int64_t sequence;
  int64_t first_row;  // of the flat axis
  int64_t num_queries;
  int64_t first_position;  // of the first query in its sequence
  int64_t kv_head;
};

// Keys are taken in blocks, and blocks in splits, both counted from a sequence's start: so the order in which a query's
// sums are built depends on its position alone.
constexpr int64_t kAttentionBlockKeys = 64;
constexpr int64_t kAttentionSplitKeys = 1024;

// Attention of a query head over one split, or over several that have been merged: values weighted by
// exp(score - best), not yet divided by their total. [head_dim] values follow in memory.
struct PartialAttention {
  float best;
  float total;

  float* values() { return reinterpret_cast<float*>(this + 1); }
  const float* values() const { return reinterpret_cast<const float*>(this + 1); }
};

inline int64_t partial_bytes(int64_t head_dim) {
  return static_cast<int64_t>(sizeof(PartialAttention)) + head_dim * static_cast<int64_t>(sizeof(float));
}

struct AttentionKernels {
  // Fills in the rows of a tile in `out`; query and out are [T, num_heads * head_dim].
  void (*attend_tile)(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                      const LayerCache& cache, const float* query, float* out, Scratch& scratch);
  // One split of a tile of one query; fills in the partial results of its heads, partial_bytes apart.
  void (*attend_split)(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                       const LayerCache& cache, const float* query, int64_t split, uint8_t* partials,
                       Scratch& scratch);
  // Merges the partial results of a head's splits, `stride` bytes apart, in their order; fills in out [head_dim].
  void (*merge_splits)(const AttentionTask& task, const uint8_t* partials, int64_t stride, int64_t num_splits,
                       float* out, Scratch& scratch);
};

}  // namespace quire
