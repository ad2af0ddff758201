#pragma once

#include <cstring>

#include "native/cpu/step.h"

namespace quire {

// The rows of x whose logits are wanted: from the axis of tokens to the axis of logit rows.
class SelectRowsInstruction : public Instruction {
 public:
  SelectRowsInstruction(int64_t width, ValueId x, ValueId out) : width_(width), x_(x), out_(out) {
    reads = {x};
    writes = {out};
  }

  int64_t num_chunks(const Run& run, int) const override { return divide_up(run.inputs.num_rows, kRows); }

  void run_chunk(const Run& run, int, int64_t chunk, Scratch&) const override {
    const Span rows = span_of(chunk, kRows, run.inputs.num_rows);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      std::memcpy(run.value(out_) + row * width_, run.value(x_) + run.inputs.logit_rows[row] * width_,
                  static_cast<size_t>(width_) * sizeof(float));
    }
  }

 private:
  static constexpr int64_t kRows = 16;
  int64_t width_;
  ValueId x_;
  ValueId out_;
};

}  // namespace quire
