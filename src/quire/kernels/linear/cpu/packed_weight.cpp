#include "linear/cpu/packed_weight.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace quire {
namespace {

uint16_t read_half(const uint8_t* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  return half;
}

// Where the numbers of a block lie, and the scales of one row of it; a row of GGUF is decoded into this.
struct RowBlock {
  uint8_t q[kBlockColumns];
  uint16_t scale = 0;    // half: d
  uint16_t minimum = 0;  // half: m, or the dmin of a super block
  uint8_t fine[2] = {0, 0};  // second level: scale and minimum, or two scales
};

void decode_nibbles(const uint8_t* packed, uint8_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = packed[i] & 15;
    q[i + 16] = packed[i] >> 4;
  }
}

void decode_fifth_bits(const uint8_t* packed, uint8_t* q) {
  uint32_t bits;
  std::memcpy(&bits, packed, sizeof bits);
  for (int i = 0; i < 32; ++i) q[i] |= static_cast<uint8_t>(((bits >> i) & 1) << 4);
}

// The 6-bit scale and minimum of sub-block `index` of the 12 bytes that hold eight of each.
void decode_fine_scales(const uint8_t* packed, int64_t index, uint8_t* fine) {
  if (index < 4) {
    fine[0] = packed[index] & 63;
    fine[1] = packed[index + 4] & 63;
  } else {
    const uint8_t low = packed[index + 4];
    fine[0] = static_cast<uint8_t>((low & 15) | ((packed[index - 4] >> 6) << 4));
    fine[1] = static_cast<uint8_t>((low >> 4) | ((packed[index] >> 6) << 4));
  }
}

// Sub-block `index` of a super block of Q4_K or Q5_K: half a byte of each of 32 bytes, and a bit of each of 32.
void decode_k(const uint8_t* block, int64_t index, bool has_fifth_bit, RowBlock* out) {
  out->scale = read_half(block);
  out->minimum = read_half(block + 2);
  decode_fine_scales(block + 4, index, out->fine);
  const uint8_t* high = block + 16;
  const uint8_t* low = block + (has_fifth_bit ? 48 : 16) + index / 2 * 32;
  for (int i = 0; i < 32; ++i) {
    out->q[i] = index % 2 == 0 ? low[i] & 15 : low[i] >> 4;
    if (has_fifth_bit) out->q[i] |= static_cast<uint8_t>(((high[i] >> index) & 1) << 4);
  }
}

void decode_q6_k(const uint8_t* block, int64_t index, RowBlock* out) {
  const int64_t half = index / 4, part = index % 4;
  const uint8_t* low = block + half * 64 + (part % 2) * 32;
  const uint8_t* high = block + 128 + half * 32;
  for (int i = 0; i < 32; ++i) {
    const uint8_t nibble = part < 2 ? low[i] & 15 : low[i] >> 4;
    out->q[i] = static_cast<uint8_t>(nibble | (((high[i] >> (2 * part)) & 3) << 4));
  }
  out->fine[0] = block[192 + 2 * index];
  out->fine[1] = block[192 + 2 * index + 1];
  out->scale = read_half(block + 208);
}

// Block `index` of a row as a GGUF file has it.
void decode(WeightFormat format, const uint8_t* row, int64_t index, RowBlock* out) {
  const FormatTraits& form = traits(format);
  const uint8_t* block = row + index * kBlockColumns / form.row_block_columns * form.row_block_bytes;
  out->scale = read_half(block);
  switch (format) {
    case WeightFormat::kQ4_0:
      return decode_nibbles(block + 2, out->q);
    case WeightFormat::kQ4_1:
      out->minimum = read_half(block + 2);
      return decode_nibbles(block + 4, out->q);
    case WeightFormat::kQ5_0:
      decode_nibbles(block + 6, out->q);
      return decode_fifth_bits(block + 2, out->q);
    case WeightFormat::kQ5_1:
      out->minimum = read_half(block + 2);
      decode_nibbles(block + 8, out->q);
      return decode_fifth_bits(block + 4, out->q);
    case WeightFormat::kQ8_0:
      for (int i = 0; i < 32; ++i) out->q[i] = static_cast<uint8_t>(block[2 + i] + 128);
      return;
    case WeightFormat::kQ4_K:
    case WeightFormat::kQ5_K:
      return decode_k(block, index % kSuperBlocks, format == WeightFormat::kQ5_K, out);
    case WeightFormat::kQ6_K:
      return decode_q6_k(block, index % kSuperBlocks, out);
    default:
      throw std::invalid_argument(std::string(form.name) + " is not a format of GGUF");
  }
}

// Byte of the quants where column `column` of row `lane` stands in its vector.
int64_t byte_of(int64_t lane, int64_t column) {
  return lane * 4 + column % 4;
}

void put_quants(int bits, const uint8_t* q, int64_t lane, uint8_t* quants) {
  for (int64_t column = 0; column < kBlockColumns; ++column) {
    const int64_t vector = column / 4, byte = byte_of(lane, column);
    const uint8_t value = q[column];
    if (bits == 8) {
      quants[vector * 64 + byte] = value;
      continue;
    }
    quants[vector % 4 * 64 + byte] |= static_cast<uint8_t>((value & 15) << (vector < 4 ? 0 : 4));
    if (bits == 5) quants[256 + byte] |= static_cast<uint8_t>((value >> 4) << vector);
    if (bits == 6) quants[256 + vector / 4 * 64 + byte] |= static_cast<uint8_t>((value >> 4) << (vector % 4 * 2));
  }
}

uint8_t get_quant(int bits, const uint8_t* quants, int64_t lane, int64_t column) {
  const int64_t vector = column / 4, byte = byte_of(lane, column);
  if (bits == 8) return quants[vector * 64 + byte];
  uint8_t value = static_cast<uint8_t>((quants[vector % 4 * 64 + byte] >> (vector < 4 ? 0 : 4)) & 15);
  if (bits == 5) value |= static_cast<uint8_t>(((quants[256 + byte] >> vector) & 1) << 4);
  if (bits == 6) value |= static_cast<uint8_t>(((quants[256 + vector / 4 * 64 + byte] >> (vector % 4 * 2)) & 3) << 4);
  return value;
}

void put_scales(const FormatTraits& form, const RowBlock& block, int64_t lane, uint8_t* scales, uint8_t* supers) {
  if (form.super_bytes == 0) {
    std::memcpy(scales + 2 * lane, &block.scale, 2);
    if (form.has_minimum) std::memcpy(scales + 32 + 2 * lane, &block.minimum, 2);
    return;
  }
  scales[lane] = block.fine[0];
  scales[16 + lane] = block.fine[1];
  std::memcpy(supers + 2 * lane, &block.scale, 2);
  if (form.has_minimum) std::memcpy(supers + 32 + 2 * lane, &block.minimum, 2);
}

// Numbers of 32 columns to 8 bits under one scale.
void quantise_symmetric(const float* values, float largest, int limit, int zero, RowBlock* out) {
  const float scale = largest / static_cast<float>(limit);
  out->scale = float_to_half(scale);
  const float stored = half_to_float(out->scale);
  const float inverse = stored > 0.0f ? 1.0f / stored : 0.0f;
  for (int64_t i = 0; i < kBlockColumns; ++i) {
    const float q = std::nearbyint(values[i] * inverse);
    out->q[i] = static_cast<uint8_t>(static_cast<int>(std::clamp(q, -static_cast<float>(zero), float(limit))) + zero);
  }
}

// Rounds values to q of [0, top] with scale and minimum, and returns the squared error.
float quantise_with(const float* values, float scale, float minimum, int top, RowBlock* out) {
  out->scale = float_to_half(scale);
  out->minimum = float_to_half(minimum);
  const float d = half_to_float(out->scale), m = half_to_float(out->minimum);
  const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
  float error = 0.0f;
  for (int64_t i = 0; i < kBlockColumns; ++i) {
    const float q = std::clamp(std::nearbyint((values[i] - m) * inverse), 0.0f, static_cast<float>(top));
    out->q[i] = static_cast<uint8_t>(q);
    const float difference = d * q + m - values[i];
    error += difference * difference;
  }
  return error;
}

// The line through (q, value) with the least squared error; the one given where all q are equal.
void fit_line(const float* values, const uint8_t* q, float* scale, float* minimum) {
  float sum_q = 0, sum_qq = 0, sum_v = 0, sum_qv = 0;
  for (int64_t i = 0; i < kBlockColumns; ++i) {
    const float x = q[i];
    sum_q += x, sum_qq += x * x, sum_v += values[i], sum_qv += x * values[i];
  }
  const float n = kBlockColumns, determinant = n * sum_qq - sum_q * sum_q;
  if (determinant <= 0.0f) return;
  const float slope = (n * sum_qv - sum_q * sum_v) / determinant;
  if (slope <= 0.0f) return;
  *scale = slope;
  *minimum = (sum_v - slope * sum_q) / n;
}

// Scale and minimum of a block: from its extremes, from narrower ranges, and each refined by a line through what it
// gives; the one with the least squared error is taken.
void quantise_affine(const float* values, int top, RowBlock* out) {
  const auto [low, high] = std::minmax_element(values, values + kBlockColumns);
  const float range = *high - *low;
  float best = INFINITY;
  for (int narrowing = 0; narrowing < 5; ++narrowing) {
    float scale = range / (static_cast<float>(top) + 0.3f * static_cast<float>(narrowing));
    float minimum = *low + 0.5f * (range - scale * static_cast<float>(top));
    for (int refinement = 0; refinement < 3; ++refinement) {
      RowBlock candidate;
      const float error = quantise_with(values, scale, minimum, top, &candidate);
      if (error < best) {
        best = error;
        *out = candidate;
      }
      fit_line(values, candidate.q, &scale, &minimum);
    }
  }
}

// 32 columns of a row of floats in a quantised format that floats can be rounded to.
void quantise(WeightFormat format, const float* values, RowBlock* out) {
  float largest = 0.0f;
  for (int64_t i = 0; i < kBlockColumns; ++i) largest = std::max(largest, std::fabs(values[i]));
  switch (format) {
    case WeightFormat::kQ4_0:
      return quantise_symmetric(values, largest, 7, 8, out);
    case WeightFormat::kQ5_0:
      return quantise_symmetric(values, largest, 15, 16, out);
    case WeightFormat::kQ8_0:
      return quantise_symmetric(values, largest, 127, 128, out);
    case WeightFormat::kQ4_1:
      return quantise_affine(values, 15, out);
    case WeightFormat::kQ5_1:
      return quantise_affine(values, 31, out);
    default:
      throw std::invalid_argument(std::string("floats cannot be rounded to ") + traits(format).name);
  }
}

float number_of(const Segment& segment, int64_t row, int64_t column) {
  const FormatTraits& form = traits(segment.format);
  const int64_t group = row / kGroupRows, lane = row % kGroupRows;
  const int64_t block = column / kBlockColumns, inside = column % kBlockColumns;
  const float q = static_cast<float>(get_quant(form.bits, segment.quants_of(group, block), lane, inside));
  const uint8_t* supers = segment.supers_of(group, block);
  if (segment.format == WeightFormat::kInt8) {
    float scale;
    std::memcpy(&scale, supers + 4 * lane, sizeof scale);
    return scale * (q - static_cast<float>(form.zero));
  }
  const uint8_t* scales = segment.scales_of(group, block);
  if (form.super_bytes == 0) {
    const float d = half_to_float(read_half(scales + 2 * lane));
    if (!form.has_minimum) return d * (q - static_cast<float>(form.zero));
    return d * q + half_to_float(read_half(scales + 32 + 2 * lane));
  }
  const float d = half_to_float(read_half(supers + 2 * lane));
  if (!form.has_minimum) {
    const int8_t fine = static_cast<int8_t>(scales[inside / 16 * 16 + lane]);
    return d * static_cast<float>(fine) * (q - static_cast<float>(form.zero));
  }
  const float minimum = half_to_float(read_half(supers + 32 + 2 * lane));
  return d * static_cast<float>(scales[lane]) * q - minimum * static_cast<float>(scales[16 + lane]);
}

}  // namespace

WeightFormat format_named(const std::string& name) {
  for (int i = 0; i < static_cast<int>(WeightFormat::kCount); ++i) {
    if (name == kTraits[i].name) return static_cast<WeightFormat>(i);
  }
  throw std::invalid_argument("no weight format is called " + name);
}

int64_t Segment::quant_bytes() const {
  return traits(format).bits * kBlockColumns * kGroupRows / 8;
}

Segment::Segment(WeightFormat format, int64_t row_start, int64_t num_rows, int64_t num_columns)
    : format(format), row_start(row_start), num_rows(num_rows), num_columns(num_columns) {
  num_blocks = (num_columns + kBlockColumns - 1) / kBlockColumns;
  num_groups = (num_rows + kGroupRows - 1) / kGroupRows;
  quants.reserve(static_cast<size_t>(num_groups * num_blocks * quant_bytes()));
  scales.reserve(static_cast<size_t>(num_groups * num_blocks * traits(format).scale_bytes));
  const int64_t num_supers = format == WeightFormat::kInt8 ? 1 : (num_blocks + kSuperBlocks - 1) / kSuperBlocks;
  supers.reserve(static_cast<size_t>(num_groups * num_supers * traits(format).super_bytes));
}

void Segment::write_rows(const uint8_t* rows, int64_t first, int64_t count) {
  const FormatTraits& form = traits(format);
  assert(first % kGroupRows == 0 && num_columns % form.row_block_columns == 0);
  const int64_t row_bytes = num_columns / form.row_block_columns * form.row_block_bytes;
  for (int64_t start = 0; start < count; start += kGroupRows) {
    const int64_t group = (first + start) / kGroupRows, filled = std::min(kGroupRows, count - start);
    for (int64_t block = 0; block < num_blocks; ++block) {
      uint8_t* block_quants = const_cast<uint8_t*>(quants_of(group, block));
      uint8_t* block_scales = const_cast<uint8_t*>(scales_of(group, block));
      uint8_t* block_supers = const_cast<uint8_t*>(supers_of(group, block));
      std::fill_n(block_quants, quant_bytes(), uint8_t{0});
      std::fill_n(block_scales, form.scale_bytes, uint8_t{0});
      if (block % kSuperBlocks == 0) std::fill_n(block_supers, form.super_bytes, uint8_t{0});
      for (int64_t lane = 0; lane < filled; ++lane) {
        RowBlock decoded;
        decode(format, rows + (start + lane) * row_bytes, block, &decoded);
        put_quants(form.bits, decoded.q, lane, block_quants);
        put_scales(form, decoded, lane, block_scales, block_supers);
      }
    }
  }
}

namespace {

void write_int8_rows(Segment& segment, const float* rows, int64_t group, int64_t filled) {
  float* row_scales = reinterpret_cast<float*>(const_cast<uint8_t*>(segment.supers_of(group, 0)));
  uint8_t* group_quants = const_cast<uint8_t*>(segment.quants_of(group, 0));
  std::memset(group_quants, 128, static_cast<size_t>(segment.num_blocks * segment.quant_bytes()));
  for (int64_t lane = 0; lane < kGroupRows; ++lane) {
    row_scales[lane] = 0.0f;
    if (lane >= filled) continue;
    const float* row = rows + lane * segment.num_columns;
    float largest = 0.0f;
    for (int64_t i = 0; i < segment.num_columns; ++i) largest = std::max(largest, std::fabs(row[i]));
    row_scales[lane] = largest / 127.0f;
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    for (int64_t i = 0; i < segment.num_columns; ++i) {
      const int64_t block = i / kBlockColumns, inside = i % kBlockColumns;
      const float q = std::clamp(std::nearbyint(row[i] * inverse), -127.0f, 127.0f);
      group_quants[block * segment.quant_bytes() + inside / 4 * 64 + byte_of(lane, inside)] =
          static_cast<uint8_t>(static_cast<int>(q) + 128);
    }
  }
}

void write_float_rows(Segment& segment, const float* rows, int64_t group, int64_t filled) {
  const int64_t padded = segment.num_blocks * kBlockColumns;
  uint8_t* place = const_cast<uint8_t*>(segment.quants_of(group, 0));
  float* floats = reinterpret_cast<float*>(place);
  uint16_t* halves = reinterpret_cast<uint16_t*>(place);
  for (int64_t column = 0; column < padded; ++column) {
    for (int64_t lane = 0; lane < kGroupRows; ++lane) {
      const bool is_inside = lane < filled && column < segment.num_columns;
      const float value = is_inside ? rows[lane * segment.num_columns + column] : 0.0f;
      if (segment.format == WeightFormat::kFloat32) {
        floats[column * kGroupRows + lane] = value;
      } else if (segment.format == WeightFormat::kFloat16) {
        halves[column * kGroupRows + lane] = float_to_half(value);
      } else {
        halves[column / 2 * 32 + lane * 2 + column % 2] = float_to_bfloat16(value);
      }
    }
  }
}

void write_block_rows(Segment& segment, const float* rows, int64_t group, int64_t filled) {
  const FormatTraits& form = traits(segment.format);
  for (int64_t block = 0; block < segment.num_blocks; ++block) {
    uint8_t* block_quants = const_cast<uint8_t*>(segment.quants_of(group, block));
    uint8_t* block_scales = const_cast<uint8_t*>(segment.scales_of(group, block));
    std::fill_n(block_quants, segment.quant_bytes(), uint8_t{0});
    std::fill_n(block_scales, form.scale_bytes, uint8_t{0});
    for (int64_t lane = 0; lane < filled; ++lane) {
      float values[kBlockColumns] = {};
      const int64_t column = block * kBlockColumns;
      const int64_t width = std::min(kBlockColumns, segment.num_columns - column);
      std::copy_n(rows + lane * segment.num_columns + column, width, values);
      RowBlock rounded;
      quantise(segment.format, values, &rounded);
      put_quants(form.bits, rounded.q, lane, block_quants);
      put_scales(form, rounded, lane, block_scales, nullptr);
    }
  }
}

}  // namespace

void Segment::write_floats(const float* rows, int64_t first, int64_t count) {
  assert(first % kGroupRows == 0);
  for (int64_t start = 0; start < count; start += kGroupRows) {
    const int64_t group = (first + start) / kGroupRows, filled = std::min(kGroupRows, count - start);
    const float* group_rows = rows + start * num_columns;
    if (format == WeightFormat::kInt8) {
      write_int8_rows(*this, group_rows, group, filled);
    } else if (!traits(format).is_quantised) {
      write_float_rows(*this, group_rows, group, filled);
    } else {
      write_block_rows(*this, group_rows, group, filled);
    }
  }
}

void Segment::read_row(int64_t row, float* out) const {
  if (traits(format).is_quantised) {
    for (int64_t column = 0; column < num_columns; ++column) out[column] = number_of(*this, row, column);
    return;
  }
  const int64_t group = row / kGroupRows, lane = row % kGroupRows;
  const uint8_t* place = quants_of(group, 0);
  for (int64_t column = 0; column < num_columns; ++column) {
    if (format == WeightFormat::kFloat32) {
      std::memcpy(&out[column], place + (column * kGroupRows + lane) * 4, sizeof(float));
    } else if (format == WeightFormat::kFloat16) {
      out[column] = half_to_float(read_half(place + (column * kGroupRows + lane) * 2));
    } else {
      const uint32_t bits = static_cast<uint32_t>(read_half(place + (column / 2 * 32 + lane * 2 + column % 2) * 2)) << 16;
      std::memcpy(&out[column], &bits, sizeof bits);
    }
  }
}

const Segment& PackedWeight::segment_of(int64_t row) const {
  for (const auto& segment : segments) {
    if (row < segment->row_start + segment->num_rows) return *segment;
  }
  throw std::out_of_range("row " + std::to_string(row) + " of a weight of " + std::to_string(num_rows));
}

void PackedWeight::read_row(int64_t row, float* out) const {
  const Segment& segment = segment_of(row);
  segment.read_row(row - segment.row_start, out);
}

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  uint32_t bits = magnitude | 0x7f800000u;  // infinity or NaN
  if ((half & 0x7c00u) != 0x7c00u) {
    float scaled;
    std::memcpy(&scaled, &magnitude, sizeof scaled);
    scaled *= 0x1p112f;  // corrects the exponent's bias, of subnormal numbers too
    std::memcpy(&bits, &scaled, sizeof bits);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to more than 65504
  if (magnitude < 0x38800000u) {  // subnormal: the addition rounds at the right bit
    float shifted;
    std::memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    std::memcpy(&bits, &shifted, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

uint16_t float_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace quire
