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

  // The first position that a query at `position` sees.
  int64_t first_key(int64_t position) const {
    return sliding_window > 0 ? std::max<int64_t>(0, position + 1 - sliding_window) : 0;
  }
};

// Consecutive queries of one sequence, for one key head and the query heads that share it.
struct AttentionTile {
  int64_t sequence;
  int64_t first_row;       // of the flat axis
  int64_t num_queries;
  int64_t first_position;  // of the first query in its sequence
  int64_t kv_head;
  bool is_first_head = true;  // of those that a thread works on one after the other
  bool is_last_head = true;

  int64_t end_position() const { return first_position + num_queries; }
};

// Keys are taken in segments of so many positions, whose results are then merged in order. Segments begin at multiples
// of their size, whoever works on them, so that cutting a context into pieces changes no bit.
constexpr int64_t kSegmentKeys = 512;

// What a tile's rows (query by query, each with its heads) have of one segment: softmax's weights relative to that of
// the best score, `sums` of the values so weighted, `totals` of the weights. One piece of memory.
struct AttentionPartial {
  AttentionPartial(float* memory, int64_t num_rows, int64_t width)
      : sums(memory), best(memory + num_rows * width), totals(best + num_rows) {}

  static int64_t num_floats(int64_t num_rows, int64_t width) { return num_rows * (width + 2); }

  float* sums;    // [rows, width]
  float* best;    // [rows]
  float* totals;  // [rows]
};

// Head dims are padded to whole vectors in scratch memory.
inline int64_t padded_width(int64_t head_dim) {
  return (head_dim + 15) / 16 * 16;
}

struct AttentionKernels {
  // Fills in the rows of a tile in `out`; query and out are [T, num_heads * head_dim].
  void (*attend_tile)(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                      const LayerCache& cache, const float* query, float* out, Scratch& scratch);
  // The same in two steps: one segment of a tile, and what `attend_tile` does when it has them all. The partials of
  // consecutive segments lie `stride` floats apart.
  void (*attend_segment)(const AttentionTask& task, const AttentionTile& tile, int64_t segment,
                         const StepInputs& inputs, const LayerCache& cache, const float* query, float* partial,
                         Scratch& scratch);
  void (*merge_segments)(const AttentionTask& task, const AttentionTile& tile, float* partials, int64_t stride,
                         int64_t num_segments, float* out);
};

}  // namespace quire
