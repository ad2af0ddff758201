// Rows of x in the layout that the products read: tiles of rows, normed and rounded where the format asks for it.
// Included by each instruction set's translation unit.
#pragma once

#include <algorithm>

#include "native/cpu/registers.h"
#include "rms_norm/cpu/rms_norm_kernels.h"
#include "linear/cpu/linear_task.h"

namespace quire::QUIRE_ISA {

// Rows whose sums stay in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kMaxVectorHeight = 12;
#else
constexpr int64_t kMaxVectorHeight = 6;
#endif

#if defined(__AMX_INT8__)
constexpr int64_t kMaxTileHeight = 32;
constexpr bool kHasTiles = true;
#else
constexpr int64_t kMaxTileHeight = kMaxVectorHeight;
constexpr bool kHasTiles = false;
#endif

#if defined(__AVX512BF16__)
constexpr bool kMultipliesBfloat16 = true;
#else
constexpr bool kMultipliesBfloat16 = false;
#endif

// One to four, or an even number.
inline int64_t tile_height_for(int64_t rows) {
  const int64_t height = rows <= 4 ? std::max<int64_t>(1, rows) : rows + rows % 2;
  return std::min(height, kMaxTileHeight);
}

inline RowTiles tile_rows(int64_t num_rows, int64_t num_columns) {
  RowTiles tiles;
  tiles.num_rows = num_rows;
  tiles.num_columns = num_columns;
  tiles.num_blocks = (num_columns + kBlockColumns - 1) / kBlockColumns;
  const int64_t least_tiles = std::max<int64_t>(1, (num_rows + kMaxTileHeight - 1) / kMaxTileHeight);
  tiles.height = tile_height_for((num_rows + least_tiles - 1) / least_tiles);
  tiles.num_tiles = std::max<int64_t>(1, (num_rows + tiles.height - 1) / tiles.height);
  tiles.last_height = tile_height_for(std::max<int64_t>(1, num_rows - (tiles.num_tiles - 1) * tiles.height));
  return tiles;
}

inline RowFormat row_format(WeightFormat format) {
  if (traits(format).is_quantised) return RowFormat::kInt8;
  return format == WeightFormat::kBfloat16 && kMultipliesBfloat16 ? RowFormat::kBfloat16 : RowFormat::kFloats;
}

inline int64_t row_bytes(RowFormat format, int64_t num_blocks) {
  const int64_t per_block = format == RowFormat::kInt8     ? sizeof(QuantisedBlock)
                            : format == RowFormat::kFloats ? kBlockColumns * sizeof(float)
                                                           : kBlockColumns * sizeof(uint16_t);
  return num_blocks * per_block;
}

// Registers for the columns of a block.
constexpr int kBlockParts = kBlockColumns / kRegisterLanes;

// The columns of a block of a row, normed where the task says so, zeros behind the end.
QUIRE_INLINE void load_block(const LinearTask& task, const float* row, float factor, int64_t column,
                             Floats (&parts)[kBlockParts]) {
  const float* from = row + column;
  const float* weight = task.norm_weight == nullptr ? nullptr : task.norm_weight + column;
  float columns[kBlockColumns], weights[kBlockColumns];
  if (const int64_t left = task.tiles.num_columns - column; left < kBlockColumns) {
    std::fill_n(std::copy_n(from, left, columns), kBlockColumns - left, 0.0f);
    from = columns;
    if (weight != nullptr) {
      std::fill_n(std::copy_n(weight, left, weights), kBlockColumns - left, 0.0f);
      weight = weights;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kBlockParts; ++i) parts[i] = load<Floats>(from + i * kRegisterLanes);
  if (weight == nullptr) return;
#pragma GCC unroll 8
  for (int i = 0; i < kBlockParts; ++i) parts[i] = parts[i] * factor * load<Floats>(weight + i * kRegisterLanes);
}

// Rounds the numbers of a block, times factor, to int8; they are at most 127 then.
QUIRE_INLINE void store_rounded(const Floats (&parts)[kBlockParts], float factor, int8_t* out) {
#if defined(__AVX512F__)
  for (int i = 0; i < kBlockParts; ++i) {
    const __m512i q = _mm512_cvtps_epi32(reinterpret_cast<__m512>(parts[i] * factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out) + i, _mm512_cvtepi32_epi8(q));
  }
#elif defined(__AVX2__)
  __m256i q[kBlockParts];
  for (int i = 0; i < kBlockParts; ++i) q[i] = _mm256_cvtps_epi32(reinterpret_cast<__m256>(parts[i] * factor));
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  // Packing went on within halves of the register.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(bytes, order));
#else
  for (int i = 0; i < kBlockColumns; ++i) {
    out[i] = static_cast<int8_t>(std::nearbyint(parts[i / kRegisterLanes][i % kRegisterLanes] * factor));
  }
#endif
}

QUIRE_INLINE int32_t sum_of_half(const int8_t* q) {
#if defined(__x86_64__)
  const __m128i bytes = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)), _mm_set1_epi8(-128));
  const __m128i sums = _mm_sad_epu8(bytes, _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 128 * kBlockColumns / 2;
#else
  int32_t sum = 0;
  for (int i = 0; i < kBlockColumns / 2; ++i) sum += q[i];
  return sum;
#endif
}

QUIRE_INLINE void quantise_block(Floats (&parts)[kBlockParts], QuantisedBlock* out) {
  Floats zeros{}, largest{};
  for (Floats& part : parts) {
    zeros += part * 0.0f;
    largest = max_in_register(largest, abs_in_register(part));
  }
  // What is not finite makes the row's results NaN; a maximum may pass over it, and it is no integer.
  const bool is_finite = is_zero(zeros);
  if (!is_finite) {
    for (Floats& part : parts) part = Floats{};
  }
  const float top = is_finite ? largest_in_register(largest) : 0.0f;
  store_rounded(parts, top > 0.0f ? 127.0f / top : 0.0f, out->q);
  const int32_t first = sum_of_half(out->q), sum = first + sum_of_half(out->q + kBlockColumns / 2);
  out->scale = is_finite ? top / 127.0f : NAN;
  out->scaled_sum = out->scale * static_cast<float>(sum);
  out->shifted_sum = -128 * sum;
  out->shifted_first = -128 * first;
}

// Where the columns of a row go that are multiplied as bfloat16: pairs of them, or a row of a tile.
QUIRE_INLINE void store_bfloat16(f32x16 columns, int64_t column, int64_t place, int64_t height, uint8_t* out) {
  if constexpr (kHasTiles) {
    const int64_t block = column / kBlockColumns;
    uint16_t* row = reinterpret_cast<uint16_t*>(out) + (block * height + place) * kBlockColumns;
    store(row + column % kBlockColumns, to_bfloat16(columns));
  } else {
    uint16_t narrow[16];
    store(narrow, to_bfloat16(columns));
    uint16_t* pairs = reinterpret_cast<uint16_t*>(out) + (column * height + place * 2);
    for (int i = 0; i < 8; ++i) std::memcpy(pairs + i * height * 2, narrow + 2 * i, 4);
  }
}

QUIRE_INLINE void store_block(const Floats (&parts)[kBlockParts], RowFormat format, int64_t block, int64_t place,
                              int64_t height, uint8_t* out) {
  float lanes[kBlockColumns];
  for (int i = 0; i < kBlockParts; ++i) store(lanes + i * kRegisterLanes, parts[i]);
  if (format == RowFormat::kBfloat16) {
    for (int half = 0; half < kBlockColumns; half += kLanes) {
      store_bfloat16(load<f32x16>(lanes + half), block * kBlockColumns + half, place, height, out);
    }
    return;
  }
  float* floats = reinterpret_cast<float*>(out) + block * kBlockColumns * height + place;
  for (int i = 0; i < kBlockColumns; ++i) floats[i * height] = lanes[i];
}

// Row `place` of a tile from its floats, in the layout of `format`; `out` is the tile.
inline void prepare_row(const LinearTask& task, RowFormat format, const float* row, int64_t place, int64_t height,
                        uint8_t* out) {
  if (format == RowFormat::kFloats) {
    const int64_t first = place / kMaxVectorHeight * kMaxVectorHeight;
    out += first * row_bytes(format, task.tiles.num_blocks);
    place -= first;
    height = std::min(height - first, kMaxVectorHeight);
  }
  const float factor = task.norm_weight == nullptr || row == nullptr
                           ? 1.0f
                           : inverse_root_mean_square(row, task.tiles.num_columns, task.epsilon);
  for (int64_t block = 0; block < task.tiles.num_blocks; ++block) {
    Floats parts[kBlockParts] = {};
    if (row != nullptr) load_block(task, row, factor, block * kBlockColumns, parts);
    if (format == RowFormat::kInt8) {
      quantise_block(parts, reinterpret_cast<QuantisedBlock*>(out) + block * height + place);
    } else {
      store_block(parts, format, block, place, height, out);
    }
  }
}

// Rows [begin, end) of x, counted over the padded rows of all tiles, in the layout of `format`.
inline void prepare_rows(const LinearTask& task, RowFormat format, int64_t begin, int64_t end, uint8_t* out) {
  const RowTiles& tiles = task.tiles;
  const int64_t bytes = row_bytes(format, tiles.num_blocks);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t tile = std::min(index / tiles.height, tiles.num_tiles - 1);
    const int64_t place = index - tile * tiles.height;
    const float* row = index < tiles.num_rows ? task.x + index * tiles.num_columns : nullptr;
    prepare_row(task, format, row, place, tiles.height_of(tile), out + tile * tiles.height * bytes);
  }
}

}  // namespace quire::QUIRE_ISA
