#pragma once

#include "native/cpu/kernel_table.h"
#include "native/cpu/step.h"

namespace quire {

// out = silu(first half of x) * second half.
class SiluMulInstruction : public Instruction {
 public:
  SiluMulInstruction(int64_t width, Axis axis, ValueId x, ValueId out)
      : width_(width), axis_(axis), x_(x), out_(out) {
    reads = {x};
    writes = {out};
  }

  int64_t num_chunks(const Run& run, int) const override { return divide_up(run.rows(axis_), kRows); }

  void run_chunk(const Run& run, int, int64_t chunk, Scratch&) const override {
    const Span rows = span_of(chunk, kRows, run.rows(axis_));
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const float* gate = run.value(x_) + row * 2 * width_;
      run.kernels->silu_mul.silu_mul_row(gate, gate + width_, width_, run.value(out_) + row * width_);
    }
  }

 private:
  static constexpr int64_t kRows = 4;
  int64_t width_;  // of the result
  Axis axis_;
  ValueId x_;
  ValueId out_;
};

}  // namespace quire
