#pragma once

#include <algorithm>

#include "native/cpu/kernel_table.h"
#include "native/cpu/step.h"

namespace quire {

// Attention of layer `layer`, in two phases.
//
// First tiles: up to kTileQueries queries of one sequence for one key head. A sequence with one query and a long context
// is cut into splits of its keys, so that one stream occupies all threads; their results are merged in the second phase.
class AttentionInstruction : public Instruction {
 public:
  AttentionInstruction(AttentionTask task, int64_t layer, ValueId query, ValueId out)
      : task_(task), layer_(layer), query_(query), out_(out) {
    reads = {query};
    writes = {out};
  }

  int num_phases() const override { return 2; }

  int64_t num_chunks(const Run& run, int phase) const override {
    int64_t chunks = 0;
    for (int64_t s = 0; s < run.inputs.num_sequences; ++s) {
      if (phase == 0) {
        chunks += num_tiles(run.inputs, s) * std::max<int64_t>(1, num_splits(run.inputs, s)) * task_.num_kv_heads;
      } else if (num_splits(run.inputs, s) > 0) {
        chunks += task_.num_kv_heads;
      }
    }
    return chunks;
  }

  size_t workspace_bytes(const Run& run) const override {
    int64_t splits = 0;
    for (int64_t s = 0; s < run.inputs.num_sequences; ++s) splits += num_splits(run.inputs, s);
    return static_cast<size_t>(splits * task_.num_heads * partial_bytes(task_.head_dim));
  }

  void run_chunk(const Run& run, int phase, int64_t chunk, Scratch& scratch) const override {
    const StepInputs& inputs = run.inputs;
    const AttentionKernels& kernels = run.kernels->attention;
    AttentionTile tile;
    tile.kv_head = chunk % task_.num_kv_heads;
    int64_t index = chunk / task_.num_kv_heads, splits_before = 0;
    for (tile.sequence = 0;; ++tile.sequence) {
      const int64_t splits = num_splits(inputs, tile.sequence);
      const int64_t own = phase == 0 ? num_tiles(inputs, tile.sequence) * std::max<int64_t>(1, splits) : splits > 0;
      if (index < own) break;
      index -= own;
      splits_before += splits;
    }
    const int64_t splits = num_splits(inputs, tile.sequence);
    const int64_t head_bytes = partial_bytes(task_.head_dim), group_bytes = task_.group_size() * head_bytes;
    // By sequence, key head, split and head of the group.
    uint8_t* partials = run.workspace + (splits_before * task_.num_kv_heads + tile.kv_head * splits) * group_bytes;
    place_tile(inputs, splits > 0 ? 0 : index, &tile);
    if (phase == 1) {
      for (int64_t head = 0; head < task_.group_size(); ++head) {
        const int64_t place = tile.first_row * task_.num_heads + tile.kv_head * task_.group_size() + head;
        kernels.merge_splits(task_, partials + head * head_bytes, group_bytes, splits,
                             run.value(out_) + place * task_.head_dim, scratch);
      }
    } else if (splits > 0) {
      kernels.attend_split(task_, tile, inputs, inputs.caches[layer_], run.value(query_), first_split(inputs, tile) + index,
                           partials + index * group_bytes, scratch);
    } else {
      kernels.attend_tile(task_, tile, inputs, inputs.caches[layer_], run.value(query_), run.value(out_), scratch);
    }
  }

 private:
  static constexpr int64_t kTileQueries = 32;

  static int64_t num_queries(const StepInputs& inputs, int64_t sequence) {
    return inputs.query_starts[sequence + 1] - inputs.query_starts[sequence];
  }

  static int64_t num_tiles(const StepInputs& inputs, int64_t sequence) {
    return divide_up(num_queries(inputs, sequence), kTileQueries);
  }

  // The first key that the last query of a sequence sees.
  int64_t seen_begin(const StepInputs& inputs, int64_t sequence) const {
    return task_.sliding_window > 0 ? std::max<int64_t>(0, inputs.context_lengths[sequence] - task_.sliding_window) : 0;
  }

  int64_t first_split(const StepInputs& inputs, const AttentionTile& tile) const {
    return seen_begin(inputs, tile.sequence) / kAttentionSplitKeys;
  }

  // Into how many chunks the keys of a sequence are cut; 0 where they are not.
  int64_t num_splits(const StepInputs& inputs, int64_t sequence) const {
    if (num_queries(inputs, sequence) != 1) return 0;
    const int64_t end = inputs.context_lengths[sequence];
    const int64_t splits = (end - 1) / kAttentionSplitKeys - seen_begin(inputs, sequence) / kAttentionSplitKeys + 1;
    return splits > 1 ? splits : 0;
  }

  static void place_tile(const StepInputs& inputs, int64_t index, AttentionTile* tile) {
    const int64_t end = inputs.query_starts[tile->sequence + 1];
    tile->first_row = inputs.query_starts[tile->sequence] + index * kTileQueries;
    tile->num_queries = std::min(kTileQueries, end - tile->first_row);
    tile->first_position = inputs.context_lengths[tile->sequence] - (end - tile->first_row);
  }

  AttentionTask task_;
  int64_t layer_;
  ValueId query_;
  ValueId out_;
};

}  // namespace quire
