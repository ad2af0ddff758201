#pragma once

#include <cmath>
#include <vector>

#include "native/cpu/step.h"

namespace quire {

// Cosines and sines of the step's positions: [T, R], first R / 2 cosines, then R / 2 sines.
//
// The arithmetic is float32, as in torch, so that equal configs give equal numbers: position * frequency is rounded
// before its cosine is taken.
class RopeTablesInstruction : public Instruction {
 public:
  RopeTablesInstruction(std::vector<float> inverse_frequencies, float factor, ValueId out)
      : inverse_frequencies_(std::move(inverse_frequencies)), factor_(factor), out_(out) {
    writes = {out};
  }

  int64_t num_chunks(const Run& run, int) const override { return divide_up(run.inputs.num_tokens, kTokens); }

  void run_chunk(const Run& run, int, int64_t chunk, Scratch&) const override {
    const Span tokens = span_of(chunk, kTokens, run.inputs.num_tokens);
    const size_t half = inverse_frequencies_.size();
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
      float* cosines = run.value(out_) + token * static_cast<int64_t>(2 * half);
      const float position = static_cast<float>(run.inputs.positions[token]);
      for (size_t i = 0; i < half; ++i) {
        const float angle = position * inverse_frequencies_[i];
        cosines[i] = std::cos(angle) * factor_;
        cosines[half + i] = std::sin(angle) * factor_;
      }
    }
  }

 private:
  static constexpr int64_t kTokens = 8;
  std::vector<float> inverse_frequencies_;
  float factor_;
  ValueId out_;
};

}  // namespace quire
