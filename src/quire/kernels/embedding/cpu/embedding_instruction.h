#pragma once

#include <memory>
#include <stdexcept>

#include "linear/cpu/packed_weight.h"
#include "native/cpu/step.h"

namespace quire {

// Rows of a packed weight by token id.
class EmbeddingInstruction : public Instruction {
 public:
  EmbeddingInstruction(std::shared_ptr<const PackedWeight> weight, ValueId out) : weight_(std::move(weight)), out_(out) {
    writes = {out};
  }

  int64_t num_chunks(const Run& run, int) const override { return divide_up(run.inputs.num_tokens, kTokens); }

  void run_chunk(const Run& run, int, int64_t chunk, Scratch&) const override {
    const Span tokens = span_of(chunk, kTokens, run.inputs.num_tokens);
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
      const int32_t id = run.inputs.token_ids[token];
      if (id < 0 || id >= weight_->num_rows) throw std::out_of_range("a token outside the vocabulary");
      weight_->read_row(id, run.value(out_) + token * weight_->num_columns);
    }
  }

 private:
  static constexpr int64_t kTokens = 4;
  std::shared_ptr<const PackedWeight> weight_;
  ValueId out_;
};

}  // namespace quire
