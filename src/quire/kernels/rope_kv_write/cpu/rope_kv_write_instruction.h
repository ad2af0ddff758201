#pragma once

#include "native/cpu/kernel_table.h"
#include "native/cpu/step.h"

namespace quire {

// Norms and turns queries and keys, writes keys and values of layer `layer` into the cache. Changes qkv.
class RopeKvWriteInstruction : public Instruction {
 public:
  RopeKvWriteInstruction(RopeTask task, int64_t layer, ValueId qkv, ValueId tables, ValueId query)
      : task_(task), layer_(layer), qkv_(qkv), tables_(tables), query_(query) {
    reads = {qkv, tables};
    writes = {query};
  }

  int64_t num_chunks(const Run& run, int) const override { return divide_up(run.inputs.num_tokens, kTokens); }

  void run_chunk(const Run& run, int, int64_t chunk, Scratch&) const override {
    const Span tokens = span_of(chunk, kTokens, run.inputs.num_tokens);
    const int64_t query_width = task_.num_heads * task_.head_dim;
    const int64_t qkv_width = query_width + 2 * task_.num_kv_heads * task_.head_dim;
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
      const float* cosines = run.value(tables_) + token * task_.rotary_dim;
      run.kernels->rope_kv_write.write_token(task_, run.value(qkv_) + token * qkv_width, cosines,
                                             cosines + task_.rotary_dim / 2, run.value(query_) + token * query_width,
                                             run.inputs.cache_format, run.inputs.caches[layer_],
                                             run.inputs.slots[token]);
    }
  }

 private:
  static constexpr int64_t kTokens = 4;
  RopeTask task_;
  int64_t layer_;
  ValueId qkv_;
  ValueId tables_;
  ValueId query_;
};

}  // namespace quire
