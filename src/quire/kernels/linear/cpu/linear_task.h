// One matrix product of a step, as the kernels see it.
#pragma once

#include <cstdint>

#include "linear/cpu/packed_weight.h"

namespace quire {

// Groups whose products are asked for together. Where a group is one register, one loop may compute both.
constexpr int kGroupsAtOnce = 2;

// What becomes of y = x @ weight.T + bias.
enum class Epilogue : int {
  kStore,  // out = y
  kAdd,    // out += y
  kGate,   // out = silu(first half of y) * second half
};

// How rows of x are laid out for a format: rows in tiles, a tile's rows side by side.
//
//   kFloats    [tile][column][height] float
//              tiles higher than the vector kernels take are parts of 12 rows one after the other
//   kBfloat16  [tile][column / 2][height][2], for machines that multiply bfloat16; [tile][block][height][32] with AMX
//   kInt8      [tile][block][height] of QuantisedBlock: a block is 32 columns
enum class RowFormat : int { kFloats, kBfloat16, kInt8 };

// 32 numbers of a row: scale * q.
struct QuantisedBlock {
  int8_t q[kBlockColumns];
  float scale;
  float scaled_sum;       // scale * sum of q
  int32_t shifted_sum;    // -128 * sum of q
  int32_t shifted_first;  // -128 * sum of the first 16 q
};

// Rows of x in tiles. All tiles but the last are `height` rows high, the last one `last_height` with rows of zeros.
struct RowTiles {
  int64_t num_rows;
  int64_t num_columns;
  int64_t num_blocks;
  int64_t height;
  int64_t last_height;
  int64_t num_tiles;

  int64_t height_of(int64_t tile) const { return tile + 1 == num_tiles ? last_height : height; }
};

struct LinearTask {
  const float* x;  // [num_rows, num_columns]
  const float* norm_weight = nullptr;  // [num_columns]; rows are RMS-normed first
  float epsilon = 0.0f;
  const PackedWeight* weight;
  const float* bias = nullptr;
  Epilogue epilogue = Epilogue::kStore;
  float* out;  // [num_rows, out_width]
  int64_t out_width;
  RowTiles tiles;
};

}  // namespace quire
