#pragma once

#include "native/cpu/kernel_table.h"
#include "native/cpu/step.h"

namespace quire {

class RmsNormInstruction : public Instruction {
 public:
  RmsNormInstruction(const float* weight, float epsilon, int64_t width, Axis axis, ValueId x, ValueId out)
      : weight_(weight), epsilon_(epsilon), width_(width), axis_(axis), x_(x), out_(out) {
    reads = {x};
    writes = {out};
  }

  int64_t num_chunks(const Run& run, int) const override { return divide_up(run.rows(axis_), kRows); }

  void run_chunk(const Run& run, int, int64_t chunk, Scratch&) const override {
    const Span rows = span_of(chunk, kRows, run.rows(axis_));
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t start = row * width_;
      run.kernels->rms_norm.norm_row(run.value(x_) + start, weight_, epsilon_, width_, run.value(out_) + start);
    }
  }

 private:
  static constexpr int64_t kRows = 4;
  const float* weight_;
  float epsilon_;
  int64_t width_;
  Axis axis_;
  ValueId x_;
  ValueId out_;
};

}  // namespace quire
