// A weight [rows, columns] in the layout that the kernels read.
//
// Sixteen rows stand side by side, so that a vector register holds one number of each. Columns come in blocks of 32.
// A block of a group of 16 rows, for quantised formats:
//
//   quants   eight vectors of 64 bytes; byte 4 * row + i of vector k is column 4 * k + i of the block
//            4 bits: vector k in the low halves of the bytes of vector k % 4, k + 4 in the high ones
//            fifth and sixth bit: planes behind that; `bits` of vector k stand in field k of their bytes
//   scales   one entry for each of the 16 rows; two levels for the K formats of GGUF
//
// Nothing is lost: a GGUF tensor takes the bytes that it takes in its file, and gives the same numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "native/cpu/memory.h"

namespace quire {

constexpr int64_t kGroupRows = 16;
constexpr int64_t kBlockColumns = 32;
constexpr int64_t kSuperBlocks = 8;  // blocks under one scale of the second level

enum class WeightFormat : int {
  kFloat32,   // [group][column][16]
  kBfloat16,  // [group][column / 2][16][2]
  kFloat16,   // [group][column][16]
  kInt8,      // per row: scale * q
  kQ4_0,      // d * (q - 8)
  kQ4_1,      // d * q + m
  kQ5_0,      // d * (q - 16)
  kQ5_1,      // d * q + m
  kQ8_0,      // d * q
  kQ4_K,      // d * scale * q - dmin * minimum
  kQ5_K,      // d * scale * q - dmin * minimum
  kQ6_K,      // d * scale * (q - 32), a scale for each 16 columns
  kCount,
};

// What a format is made of.
struct FormatTraits {
  const char* name;
  bool is_quantised;
  int bits;             // of a number
  int zero;             // q that stands for 0, where there is no minimum
  bool has_minimum;
  int64_t scale_bytes;  // of a block of a group
  int64_t super_bytes;  // of eight blocks of a group; of a whole group for kInt8
  int64_t row_block_columns;  // GGUF: columns and bytes of the unit that a file's row is made of, 0 for others
  int64_t row_block_bytes;
};

inline constexpr FormatTraits kTraits[] = {
    {"float32", false, 32, 0, false, 0, 0, 0, 0},
    {"bfloat16", false, 16, 0, false, 0, 0, 0, 0},
    {"float16", false, 16, 0, false, 0, 0, 0, 0},
    {"int8", true, 8, 128, false, 0, 64, 0, 0},
    {"Q4_0", true, 4, 8, false, 32, 0, 32, 18},
    {"Q4_1", true, 4, 0, true, 64, 0, 32, 20},
    {"Q5_0", true, 5, 16, false, 32, 0, 32, 22},
    {"Q5_1", true, 5, 0, true, 64, 0, 32, 24},
    {"Q8_0", true, 8, 128, false, 32, 0, 32, 34},
    {"Q4_K", true, 4, 0, true, 32, 64, 256, 144},
    {"Q5_K", true, 5, 0, true, 32, 64, 256, 176},
    {"Q6_K", true, 6, 32, false, 32, 32, 256, 210},
};

constexpr const FormatTraits& traits(WeightFormat format) {
  return kTraits[static_cast<int>(format)];
}

// The format of that name. Throws std::invalid_argument for another.
WeightFormat format_named(const std::string& name);

// Consecutive rows of one format. Rows are padded to whole groups, columns to whole blocks.
struct Segment {
  WeightFormat format;
  int64_t row_start = 0;  // in the weight
  int64_t num_rows = 0;
  int64_t num_columns = 0;
  int64_t num_blocks = 0;
  int64_t num_groups = 0;
  Buffer quants;
  Buffer scales;
  Buffer supers;

  Segment(WeightFormat format, int64_t row_start, int64_t num_rows, int64_t num_columns);

  int64_t num_bytes() const { return static_cast<int64_t>(quants.size() + scales.size() + supers.size()); }
  int64_t quant_bytes() const;  // of a block of a group

  const uint8_t* quants_of(int64_t group, int64_t block) const {
    return quants.as<uint8_t>() + (group * num_blocks + block) * quant_bytes();
  }
  const uint8_t* scales_of(int64_t group, int64_t block) const {
    return scales.as<uint8_t>() + (group * num_blocks + block) * traits(format).scale_bytes;
  }
  const uint8_t* supers_of(int64_t group, int64_t block) const {
    const int64_t per_group = format == WeightFormat::kInt8 ? 1 : (num_blocks + kSuperBlocks - 1) / kSuperBlocks;
    const int64_t index = format == WeightFormat::kInt8 ? 0 : block / kSuperBlocks;
    return supers.as<uint8_t>() + (group * per_group + index) * traits(format).super_bytes;
  }

  // Fills rows from [count, num_columns] floats, rounding them to the format; not for the K formats.
  // `first` is a multiple of 16, and so is `count` unless it ends with the segment.
  void write_floats(const float* rows, int64_t first, int64_t count);

  // Fills rows from the bytes of a GGUF file, for the formats that it has.
  void write_rows(const uint8_t* rows, int64_t first, int64_t count);

  // The numbers of one row, [num_columns].
  void read_row(int64_t row, float* out) const;
};

// All rows of a weight, in order.
struct PackedWeight {
  int64_t num_rows = 0;
  int64_t num_columns = 0;
  std::vector<std::unique_ptr<Segment>> segments;

  const Segment& segment_of(int64_t row) const;
  void read_row(int64_t row, float* out) const;
};

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);
uint16_t float_to_bfloat16(float value);

}  // namespace quire
