// A matrix product as part of a recorded step.
#pragma once

#include <memory>
#include <vector>

#include "native/cpu/kernel_table.h"
#include "native/cpu/step.h"
#include "linear/cpu/linear_task.h"

namespace quire {

// What surrounds a product; see `quire.kernels.linear.linear`.
struct LinearOptions {
  const float* norm_weight = nullptr;
  float epsilon = 0.0f;
  const float* bias = nullptr;
  Epilogue epilogue = Epilogue::kStore;
};

// Two phases: rows of x into the kernels' layout, then groups of 16 outputs for all rows. One or two rows are prepared
// by every thread for itself, which costs less than waiting for each other.
class LinearInstruction : public Instruction {
 public:
  LinearInstruction(std::shared_ptr<const PackedWeight> weight, LinearOptions options, Axis axis, ValueId x,
                    ValueId out, const LinearKernels& kernels);

  // Whether the kernels can multiply a weight's halves together: silu(first) * second.
  static bool can_gate(const PackedWeight& weight);

  int num_phases() const override { return 2; }
  int64_t num_chunks(const Run& run, int phase) const override;
  void run_chunk(const Run& run, int phase, int64_t chunk, Scratch& scratch) const override;
  size_t workspace_bytes(const Run& run) const override;

 private:
  LinearTask task(const Run& run) const;
  int64_t num_padded_rows(const RowTiles& tiles) const;
  int64_t groups_per_chunk(const Run& run) const;
  // Of the rows that are prepared: a tile at most, whose rows lie side by side and share lines of the cache.
  int64_t rows_per_chunk(const Run& run, const RowTiles& tiles) const;
  void prepare(const LinearTask& task, int64_t begin, int64_t end, uint8_t* rows) const;
  const uint8_t* prepared_rows(const Run& run, const LinearTask& task, Scratch& scratch) const;
  // Where rows of a format begin in the memory that holds them in all formats.
  int64_t offset_of(RowFormat format, const RowTiles& tiles) const;
  void multiply_chunk(const Run& run, const LinearTask& task, int64_t chunk, const uint8_t* rows) const;

  std::shared_ptr<const PackedWeight> weight_;
  LinearOptions options_;
  Axis axis_;
  ValueId x_;
  ValueId out_;
  LinearKernels kernels_;
  std::vector<RowFormat> row_formats_;
  int64_t num_groups_ = 0;
};

}  // namespace quire
