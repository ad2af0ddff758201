#pragma once

#include "native/cpu/kernel_table.h"
#include "native/cpu/step.h"

namespace quire {

// Attention of layer `layer`: tiles of up to kTileQueries queries of one sequence, each for one key head.
class AttentionInstruction : public Instruction {
 public:
  AttentionInstruction(AttentionTask task, int64_t layer, ValueId query, ValueId out)
      : task_(task), layer_(layer), query_(query), out_(out) {
    reads = {query};
    writes = {out};
  }

  int64_t num_chunks(const Run& run, int) const override {
    int64_t tiles = 0;
    for (int64_t s = 0; s < run.inputs.num_sequences; ++s) tiles += num_tiles(run.inputs, s);
    return tiles * task_.num_kv_heads;
  }

  void run_chunk(const Run& run, int, int64_t chunk, Scratch& scratch) const override {
    const StepInputs& inputs = run.inputs;
    AttentionTile tile;
    tile.kv_head = chunk % task_.num_kv_heads;
    int64_t index = chunk / task_.num_kv_heads;
    tile.sequence = 0;
    while (index >= num_tiles(inputs, tile.sequence)) index -= num_tiles(inputs, tile.sequence++);
    const int64_t begin = inputs.query_starts[tile.sequence], end = inputs.query_starts[tile.sequence + 1];
    tile.first_row = begin + index * kTileQueries;
    tile.num_queries = std::min(kTileQueries, end - tile.first_row);
    tile.first_position = inputs.context_lengths[tile.sequence] - (end - tile.first_row);
    run.kernels->attention.attend_tile(task_, tile, inputs, inputs.caches[layer_], run.value(query_),
                                       run.value(out_), scratch);
  }

 private:
  static constexpr int64_t kTileQueries = 32;

  static int64_t num_tiles(const StepInputs& inputs, int64_t sequence) {
    return divide_up(inputs.query_starts[sequence + 1] - inputs.query_starts[sequence], kTileQueries);
  }

  AttentionTask task_;
  int64_t layer_;
  ValueId query_;
  ValueId out_;
};

}  // namespace quire
