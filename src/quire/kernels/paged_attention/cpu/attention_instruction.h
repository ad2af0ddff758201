#pragma once

#include "native/cpu/kernel_table.h"
#include "native/cpu/step.h"

namespace quire {

// Attention of layer `layer`: tiles of consecutive queries of one sequence, each for one key head.
//
// Where tiles abound, those of all key heads are one piece of work: the cache has their keys side by side. Where they
// are too few to keep all threads busy, each is cut into its segments of keys, whose results a second phase merges.
class AttentionInstruction : public Instruction {
 public:
  AttentionInstruction(AttentionTask task, int64_t layer, ValueId query, ValueId out)
      : task_(task), layer_(layer), query_(query), out_(out) {
    reads = {query};
    writes = {out};
    tile_queries_ = std::max<int64_t>(1, kTileRows / task.group_size());
  }

  int num_phases() const override { return 2; }

  int64_t num_chunks(const Run& run, int phase) const override {
    const Split split = split_of(run);
    const int64_t tiles = num_tile_places(run.inputs) * task_.num_kv_heads;
    if (split.segments == 0) return phase == 0 ? tiles / heads_per_chunk(run) : 0;
    return phase == 0 ? tiles * split.segments : tiles;
  }

  size_t workspace_bytes(const Run& run) const override {
    const Split split = split_of(run);
    const int64_t partials = num_tile_places(run.inputs) * task_.num_kv_heads * split.segments;
    return static_cast<size_t>(partials * split.partial_floats) * sizeof(float);
  }

  void run_chunk(const Run& run, int phase, int64_t chunk, Scratch& scratch) const override {
    const Split split = split_of(run);
    if (split.segments == 0) return attend_tiles(run, chunk, scratch);
    const int64_t pieces = phase == 0 ? split.segments : 1;
    const int64_t place = chunk / pieces;
    AttentionTile tile;
    if (!find_tile(run.inputs, place, &tile)) return;
    const LayerCache& cache = run.inputs.caches[layer_];
    const AttentionKernels& kernels = run.kernels->attention;
    const int64_t first = task_.first_key(tile.first_position) / kSegmentKeys;
    const int64_t end = divide_up(tile.end_position(), kSegmentKeys);
    float* partials = reinterpret_cast<float*>(run.workspace) + place * split.segments * split.partial_floats;
    if (phase == 1) {
      kernels.merge_segments(task_, tile, partials, split.partial_floats, end - first, run.value(out_));
    } else if (const int64_t piece = chunk % pieces; first + piece < end) {
      kernels.attend_segment(task_, tile, first + piece, run.inputs, cache, run.value(query_),
                             partials + piece * split.partial_floats, scratch);
    }
  }

 private:
  static constexpr int64_t kTileRows = 96;
  static constexpr int64_t kTilesPerThread = 4;

  int64_t heads_per_chunk(const Run& run) const {
    return num_tile_places(run.inputs) >= kTilesPerThread * run.num_threads ? task_.num_kv_heads : 1;
  }

  // The tiles of a chunk, whole.
  void attend_tiles(const Run& run, int64_t chunk, Scratch& scratch) const {
    const int64_t heads = heads_per_chunk(run);
    for (int64_t head = 0; head < heads; ++head) {
      AttentionTile tile;
      if (!find_tile(run.inputs, chunk * heads + head, &tile)) return;
      tile.is_first_head = head == 0;
      tile.is_last_head = head + 1 == heads;
      run.kernels->attention.attend_tile(task_, tile, run.inputs, run.inputs.caches[layer_], run.value(query_),
                                         run.value(out_), scratch);
    }
  }

  // How tiles are cut into segments: into at most so many, 0 where they are not cut.
  struct Split {
    int64_t segments = 0;
    int64_t partial_floats = 0;
  };

  Split split_of(const Run& run) const {
    const StepInputs& inputs = run.inputs;
    const int64_t tiles = num_tile_places(inputs) * task_.num_kv_heads;
    if (run.num_threads == 1 || tiles >= kTilesPerThread * run.num_threads) return {};
    int64_t segments = 0, queries = 0;
    for (int64_t s = 0; s < inputs.num_sequences; ++s) {
      const int64_t end = inputs.context_lengths[s];
      const int64_t num_queries = inputs.query_starts[s + 1] - inputs.query_starts[s];
      const int64_t begin = task_.first_key(end - num_queries);
      segments = std::max(segments, divide_up(end, kSegmentKeys) - begin / kSegmentKeys);
      queries = std::max(queries, std::min(num_queries, tile_queries_));
    }
    if (segments < 2) return {};
    return {segments, AttentionPartial::num_floats(queries * task_.group_size(), padded_width(task_.head_dim))};
  }

  // Sequence s has the places [first_place(s), first_place(s + 1)), enough for its tiles however they are cut; so a
  // place's sequence is found by bisection. Some stay empty.
  int64_t first_place(const StepInputs& inputs, int64_t s) const { return inputs.query_starts[s] / tile_queries_ + s; }
  int64_t num_tile_places(const StepInputs& inputs) const { return first_place(inputs, inputs.num_sequences); }

  // The tile of a place, or false for an empty one. A prompt's last tiles, which see most keys, come first.
  bool find_tile(const StepInputs& inputs, int64_t place, AttentionTile* tile) const {
    tile->kv_head = place % task_.num_kv_heads;
    const int64_t wanted = place / task_.num_kv_heads;
    int64_t low = 0, high = inputs.num_sequences;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_place(inputs, middle) <= wanted ? low : high) = middle;
    }
    const int64_t begin = inputs.query_starts[low], end = inputs.query_starts[low + 1];
    const int64_t index = first_place(inputs, low + 1) - 1 - wanted;
    tile->sequence = low;
    tile->first_row = begin + index * tile_queries_;
    if (tile->first_row >= end) return false;
    tile->num_queries = std::min(tile_queries_, end - tile->first_row);
    tile->first_position = inputs.context_lengths[low] - (end - tile->first_row);
    return true;
  }

  AttentionTask task_;
  int64_t layer_;
  ValueId query_;
  ValueId out_;
  int64_t tile_queries_;
};

}  // namespace quire
