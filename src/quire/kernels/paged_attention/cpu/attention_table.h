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
};

// Consecutive queries of one sequence, for one key head and the query heads that share it.
struct AttentionTile {
  int64_t sequence;
  int64_t first_row;       // of the flat axis
  int64_t num_queries;
  int64_t first_position;  // of the first query in its sequence
  int64_t kv_head;
};

struct AttentionKernels {
  // Fills in the rows of a tile in `out`; query and out are [T, num_heads * head_dim].
  void (*attend_tile)(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                      const LayerCache& cache, const float* query, float* out, Scratch& scratch);
};

}  // namespace quire
