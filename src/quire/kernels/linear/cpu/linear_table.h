// The kernels of matrix products, by instruction set.
#pragma once

#include "linear/cpu/linear_task.h"

namespace quire {

struct LinearKernels {
  RowTiles (*tile_rows)(int64_t num_rows, int64_t num_columns);
  RowFormat (*row_format)(WeightFormat format);
  int64_t (*row_bytes)(RowFormat format, int64_t num_blocks);
  void (*prepare_rows)(const LinearTask& task, RowFormat format, int64_t begin, int64_t end, uint8_t* out);
  void (*multiply_groups)(const LinearTask& task, const Segment& segment, const uint8_t* rows, int64_t begin,
                          int64_t end);
  void (*multiply_gated_groups)(const LinearTask& task, const Segment& gate, const Segment& up, int64_t up_group,
                                const uint8_t* rows, int64_t begin, int64_t end);
};

}  // namespace quire
