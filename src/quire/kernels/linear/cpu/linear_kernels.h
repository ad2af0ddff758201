// Matrix products of float rows with a packed weight. Included by each instruction set's translation unit.
//
// One design for one row and for hundreds: a micro kernel takes H rows of x and a group of 16 rows of the weight, whose
// numbers it unpacks once per block for all H. A row's sums run over the columns in the same order whatever H is, so
// its result does not depend on the rows beside it.
//
// Quantised weights: x is rounded to int8 in blocks of 32 (the scheme of GGML's CPU kernels), products within a block
// are exact integers, and blocks are added up in float32.
#pragma once

#include <algorithm>

#include "native/cpu/vector.h"
#include "rms_norm/cpu/rms_norm_kernels.h"
#include "silu_mul/cpu/silu_mul_kernels.h"
#include "linear/cpu/linear_task.h"

namespace quire::QUIRE_ISA {

// Rows whose sums stay in registers.
#if defined(__AVX512F__)
constexpr int64_t kMaxVectorHeight = 12;
#else
constexpr int64_t kMaxVectorHeight = 4;
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

// ---- rows of x ----

// Columns [column, column + 16) of a row, normed where the task says so, zeros behind the end.
QUIRE_INLINE f32x16 row_part(const LinearTask& task, const float* row, float factor, int64_t column) {
  const int64_t left = task.tiles.num_columns - column;
  if (left <= 0) return f32x16{};
  const int count = static_cast<int>(std::min<int64_t>(left, kLanes));
  const f32x16 part = count == kLanes ? load<f32x16>(row + column) : load_some(row + column, count);
  if (task.norm_weight == nullptr) return part;
  const float* weight = task.norm_weight + column;
  return part * factor * (count == kLanes ? load<f32x16>(weight) : load_some(weight, count));
}

inline void quantise_block(f32x16 first, f32x16 second, QuantisedBlock* out) {
  // What is not finite makes the row's results NaN; a maximum may pass over it, and it is no integer.
  const bool is_finite = sum((first + second) * 0.0f) == 0.0f;
  if (!is_finite) first = second = f32x16{};
  const float top = largest(max(abs(first), abs(second)));
  const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
  const i32x16 q[2] = {round_to_int(first * inverse), round_to_int(second * inverse)};
  int32_t sums[2] = {0, 0};
  for (int half = 0; half < 2; ++half) {
    const i8x16 narrow = __builtin_convertvector(q[half], i8x16);
    store(out->q + 16 * half, narrow);
    int32_t lanes[16];
    store(lanes, q[half]);
    for (int i = 0; i < 16; ++i) sums[half] += lanes[i];
  }
  out->scale = is_finite ? top / 127.0f : NAN;
  out->scaled_sum = out->scale * static_cast<float>(sums[0] + sums[1]);
  out->shifted_sum = -128 * (sums[0] + sums[1]);
  out->shifted_first = -128 * sums[0];
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
    f32x16 parts[2] = {};
    if (row != nullptr) {
      for (int half = 0; half < 2; ++half) {
        parts[half] = row_part(task, row, factor, block * kBlockColumns + half * kLanes);
      }
    }
    if (format == RowFormat::kInt8) {
      quantise_block(parts[0], parts[1], reinterpret_cast<QuantisedBlock*>(out) + block * height + place);
      continue;
    }
    for (int half = 0; half < 2; ++half) {
      const int64_t column = block * kBlockColumns + half * kLanes;
      if (format == RowFormat::kBfloat16 && kHasTiles) {
        uint16_t* pairs = reinterpret_cast<uint16_t*>(out) + (block * height + place) * kBlockColumns;
        store(pairs + half * kLanes, to_bfloat16(parts[half]));
      } else if (format == RowFormat::kBfloat16) {
        uint16_t narrow[16];
        store(narrow, to_bfloat16(parts[half]));
        uint16_t* pairs = reinterpret_cast<uint16_t*>(out) + (column * height + place * 2);
        for (int i = 0; i < 8; ++i) std::memcpy(pairs + i * height * 2, narrow + 2 * i, 4);
      } else {
        float lanes[16];
        store(lanes, parts[half]);
        float* floats = reinterpret_cast<float*>(out) + column * height + place;
        for (int i = 0; i < 16; ++i) floats[i * height] = lanes[i];
      }
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

// ---- unpacking ----

// The numbers of a block of a group as the integers q, and how they are scaled.
struct UnpackedBlock {
  u8x64 q[8];
  f32x16 scale;
  f32x16 second;  // the minimum, or the scale of the second half of the block
};

constexpr bool has_minimum(WeightFormat format) {
  return format == WeightFormat::kQ4_1 || format == WeightFormat::kQ5_1 || format == WeightFormat::kQ4_K ||
         format == WeightFormat::kQ5_K;
}

// -128 * sum of x is shifted right by so much to become -zero * sum of x.
constexpr int zero_shift(WeightFormat format) {
  return format == WeightFormat::kQ4_0   ? 4
         : format == WeightFormat::kQ5_0 ? 3
         : format == WeightFormat::kQ6_K ? 2
                                         : 0;
}

template <WeightFormat kFormat>
constexpr bool kHasFifthBit =
    kFormat == WeightFormat::kQ5_0 || kFormat == WeightFormat::kQ5_1 || kFormat == WeightFormat::kQ5_K;

template <WeightFormat kFormat>
constexpr bool kIsWide = kFormat == WeightFormat::kQ8_0 || kFormat == WeightFormat::kInt8;

QUIRE_INLINE u8x64 shift_right(u8x64 a, int by, uint8_t mask) {
  typedef uint16_t u16x32 __attribute__((vector_size(64)));
  return reinterpret_cast<u8x64>(reinterpret_cast<u16x32>(a) >> by) & mask;
}

QUIRE_INLINE u8x64 shift_left(u8x64 a, int by, uint8_t mask) {
  typedef uint16_t u16x32 __attribute__((vector_size(64)));
  return reinterpret_cast<u8x64>(reinterpret_cast<u16x32>(a) << by) & mask;
}

template <WeightFormat kFormat>
QUIRE_INLINE void unpack_quants(const uint8_t* quants, u8x64 (&q)[8]) {
  if constexpr (kFormat == WeightFormat::kQ8_0 || kFormat == WeightFormat::kInt8) {
    for (int k = 0; k < 8; ++k) q[k] = load<u8x64>(quants + 64 * k);
    return;
  }
  for (int k = 0; k < 4; ++k) {
    const u8x64 both = load<u8x64>(quants + 64 * k);
    q[k] = both & 15;
    q[k + 4] = shift_right(both, 4, 15);
  }
  if constexpr (kHasFifthBit<kFormat>) {
    const u8x64 fifth = load<u8x64>(quants + 256);
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) q[k] |= k <= 4 ? shift_left(fifth, 4 - k, 16) : shift_right(fifth, k - 4, 16);
  }
  if constexpr (kFormat == WeightFormat::kQ6_K) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      const u8x64 high = load<u8x64>(quants + 256 + k / 4 * 64);
      const int place = k % 4 * 2;  // two bits there become bits 4 and 5
      q[k] |= place <= 4 ? shift_left(high, 4 - place, 48) : shift_right(high, place - 4, 48);
    }
  }
}

QUIRE_INLINE f32x16 bytes_to_float(const uint8_t* from) {
  return __builtin_convertvector(__builtin_convertvector(load<u8x16>(from), i32x16), f32x16);
}

QUIRE_INLINE f32x16 signed_bytes_to_float(const uint8_t* from) {
  return __builtin_convertvector(__builtin_convertvector(load<i8x16>(from), i32x16), f32x16);
}

template <WeightFormat kFormat>
QUIRE_INLINE void unpack_scales(const uint8_t* scales, const uint8_t* supers, UnpackedBlock* out) {
  if constexpr (kFormat == WeightFormat::kInt8) {
    out->scale = load<f32x16>(supers);
  } else if constexpr (kFormat == WeightFormat::kQ4_K || kFormat == WeightFormat::kQ5_K) {
    out->scale = from_float16(load<u16x16>(supers)) * bytes_to_float(scales);
    out->second = -(from_float16(load<u16x16>(supers + 32)) * bytes_to_float(scales + 16));
  } else if constexpr (kFormat == WeightFormat::kQ6_K) {
    const f32x16 d = from_float16(load<u16x16>(supers));
    out->scale = d * signed_bytes_to_float(scales);
    out->second = d * signed_bytes_to_float(scales + 16);
  } else {
    out->scale = from_float16(load<u16x16>(scales));
    if constexpr (has_minimum(kFormat)) out->second = from_float16(load<u16x16>(scales + 32));
  }
}

// ---- products ----

// Adds to each of 16 sums the products of its four bytes of q with the four bytes of x. kIsWide: q may exceed 127.
template <bool kIsWide>
QUIRE_INLINE i32x16 dot4(i32x16 sums, u8x64 q, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
#if defined(__AVX512VNNI__)
  return reinterpret_cast<i32x16>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(q),
                                                      _mm512_set1_epi32(four)));
#elif defined(__AVX512BW__)
  const __m512i ones = _mm512_set1_epi16(1), xs = _mm512_set1_epi32(four), qs = reinterpret_cast<__m512i>(q);
  if constexpr (!kIsWide) {
    const __m512i dots = _mm512_madd_epi16(_mm512_maddubs_epi16(qs, xs), ones);
    return sums + reinterpret_cast<i32x16>(dots);
  }
  // Pairs of products of larger q do not fit 16 bits: the top bit is multiplied by itself.
  const __m512i low = _mm512_maddubs_epi16(_mm512_and_si512(qs, _mm512_set1_epi8(127)), xs);
  const __m512i top = _mm512_and_si512(_mm512_srli_epi16(qs, 7), _mm512_set1_epi8(1));
  const __m512i high = _mm512_maddubs_epi16(top, xs);
  const __m512i dots = _mm512_add_epi32(_mm512_madd_epi16(low, ones), _mm512_slli_epi32(_mm512_madd_epi16(high, ones), 7));
  return sums + reinterpret_cast<i32x16>(dots);
#else
  uint8_t qs[64];
  int32_t dots[16];
  std::memcpy(qs, &q, sizeof q);
  for (int i = 0; i < 16; ++i) {
    dots[i] = qs[4 * i] * x[0] + qs[4 * i + 1] * x[1] + qs[4 * i + 2] * x[2] + qs[4 * i + 3] * x[3];
  }
  return sums + load<i32x16>(dots);
#endif
}

// Where the sums of integer products of a block begin: at -zero * sum of x, the first half's alone for Q6_K.
template <WeightFormat kFormat>
QUIRE_INLINE i32x16 first_dots(const QuantisedBlock& x) {
  if constexpr (has_minimum(kFormat)) return i32x16{};
  return splat((kFormat == WeightFormat::kQ6_K ? x.shifted_first : x.shifted_sum) >> zero_shift(kFormat));
}

QUIRE_INLINE i32x16 second_dots(const QuantisedBlock& x) {
  return splat((x.shifted_sum - x.shifted_first) >> zero_shift(WeightFormat::kQ6_K));
}

// Scales the integer products of a block and adds them to a row's sums.
template <WeightFormat kFormat>
QUIRE_INLINE f32x16 add_dots(const UnpackedBlock& block, const QuantisedBlock& x, i32x16 dots, f32x16 sums) {
  sums = fma(to_float(dots), block.scale * x.scale, sums);
  if constexpr (has_minimum(kFormat)) sums = fma(block.second, splat(x.scaled_sum), sums);
  return sums;
}

#if !defined(__AVX512F__)
// Sums of the products of vectors [kBegin, kEnd) of a block with those columns of H rows.
#if defined(__AVX2__)
// Pairs of products are added up in 16 bits as long as they cannot overflow, and then in 32. Of 8-bit numbers the top
// bit is multiplied by itself.
template <WeightFormat kFormat, int H, int kBegin, int kEnd>
QUIRE_INLINE void sum_products(const u8x64 (&q)[8], const QuantisedBlock* x, i32x16 (&dots)[H]) {
  constexpr bool kIsTopApart = kIsWide<kFormat>;
  constexpr int kSafe = kIsTopApart ? 1 : kFormat == WeightFormat::kQ6_K ? 2 : kHasFifthBit<kFormat> ? 4 : 8;
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half) {
    __m256i wide[H], narrow[H], top[H];
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) wide[h] = narrow[h] = top[h] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int k = kBegin; k < kEnd; ++k) {
      const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&q[k]) + half);
      const __m256i low = kIsTopApart ? _mm256_and_si256(all, _mm256_set1_epi8(127)) : all;
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(all, 7), _mm256_set1_epi8(1));
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        int32_t four;
        std::memcpy(&four, x[h].q + 4 * k, sizeof four);
        const __m256i xs = _mm256_set1_epi32(four);
        narrow[h] = _mm256_add_epi16(narrow[h], _mm256_maddubs_epi16(low, xs));
        if constexpr (kIsTopApart) top[h] = _mm256_add_epi16(top[h], _mm256_maddubs_epi16(high, xs));
        if ((k - kBegin) % kSafe == kSafe - 1) {
          wide[h] = _mm256_add_epi32(wide[h], _mm256_madd_epi16(narrow[h], ones));
          narrow[h] = _mm256_setzero_si256();
        }
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      if constexpr (kIsTopApart) {
        wide[h] = _mm256_add_epi32(wide[h], _mm256_slli_epi32(_mm256_madd_epi16(top[h], ones), 7));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(&dots[h]) + half, wide[h]);
    }
  }
}
#else
template <WeightFormat kFormat, int H, int kBegin, int kEnd>
QUIRE_INLINE void sum_products(const u8x64 (&q)[8], const QuantisedBlock* x, i32x16 (&dots)[H]) {
  for (int h = 0; h < H; ++h) dots[h] = i32x16{};
  for (int k = kBegin; k < kEnd; ++k) {
    for (int h = 0; h < H; ++h) dots[h] = dot4<kIsWide<kFormat>>(dots[h], q[k], x[h].q + 4 * k);
  }
}
#endif
#endif

// Adds a block's products of H rows to their sums. With 32 registers a block stays in eight of them and rows take
// turns; with 16 each vector of the block is used for all rows before the next is taken.
template <WeightFormat kFormat, int H>
QUIRE_INLINE void add_block(const UnpackedBlock& block, const QuantisedBlock* x, f32x16 (&sums)[H]) {
#if defined(__AVX512F__)
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) {
    i32x16 dots = first_dots<kFormat>(x[h]);
    if constexpr (kFormat == WeightFormat::kQ6_K) {
      i32x16 later = second_dots(x[h]);
      for (int k = 0; k < 4; ++k) dots = dot4<false>(dots, block.q[k], x[h].q + 4 * k);
      for (int k = 4; k < 8; ++k) later = dot4<false>(later, block.q[k], x[h].q + 4 * k);
      sums[h] = add_dots<kFormat>(block, x[h], dots, sums[h]);
      sums[h] = fma(to_float(later), block.second * x[h].scale, sums[h]);
    } else {
      for (int k = 0; k < 8; ++k) dots = dot4<kIsWide<kFormat>>(dots, block.q[k], x[h].q + 4 * k);
      sums[h] = add_dots<kFormat>(block, x[h], dots, sums[h]);
    }
  }
#else
  i32x16 dots[H];
  sum_products<kFormat, H, 0, kFormat == WeightFormat::kQ6_K ? 4 : 8>(block.q, x, dots);
#pragma GCC unroll 4
  for (int h = 0; h < H; ++h) sums[h] = add_dots<kFormat>(block, x[h], dots[h] + first_dots<kFormat>(x[h]), sums[h]);
  if constexpr (kFormat == WeightFormat::kQ6_K) {
    sum_products<kFormat, H, 4, 8>(block.q, x, dots);
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      sums[h] = fma(to_float(dots[h] + second_dots(x[h])), block.second * x[h].scale, sums[h]);
    }
  }
#endif
}

// Products of a tile of H rows with a group of a quantised segment.
template <WeightFormat kFormat, int H>
void multiply_quantised(const Segment& segment, int64_t group, const uint8_t* tile, f32x16* out) {
  const QuantisedBlock* x = reinterpret_cast<const QuantisedBlock*>(tile);
  f32x16 sums[H];
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) sums[h] = f32x16{};
  UnpackedBlock block;
  const uint8_t* quants = segment.quants_of(group, 0);
  const uint8_t* scales = segment.scales_of(group, 0);
  const uint8_t* supers = segment.supers_of(group, 0);
  const int64_t quant_bytes = segment.quant_bytes(), scale_bytes = traits(kFormat).scale_bytes;
  const int64_t super_bytes = kFormat == WeightFormat::kInt8 ? 0 : traits(kFormat).super_bytes;
  for (int64_t b = 0; b < segment.num_blocks; ++b, x += H) {
    unpack_quants<kFormat>(quants, block.q);
    unpack_scales<kFormat>(scales, supers, &block);
    quants += quant_bytes;
    scales += scale_bytes;
    if (b % kSuperBlocks == kSuperBlocks - 1) supers += super_bytes;
    add_block<kFormat, H>(block, x, sums);
  }
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) out[h] = sums[h];
}

}  // namespace quire::QUIRE_ISA

#if defined(__AMX_INT8__)
#include "linear/cpu/linear_amx.h"
#endif

namespace quire::QUIRE_ISA {

#if !defined(__AMX_INT8__)
// A thread's tile registers; this machine has none.
struct TileShapes {
  TileShapes(WeightFormat, int64_t) {}
};
#endif

// Two columns of 16 rows of bfloat16, as floats.
QUIRE_INLINE void unpack_bfloat16_pair(const uint8_t* from, f32x16* even, f32x16* odd) {
  const u32x16 pairs = load<u32x16>(from);
  *even = reinterpret_cast<f32x16>(pairs << 16);
  *odd = reinterpret_cast<f32x16>(pairs & 0xffff0000u);
}

// Products of a tile of H rows with a group of a segment of floats.
template <WeightFormat kFormat, int H>
void multiply_floats(const Segment& segment, int64_t group, const uint8_t* tile, f32x16* out) {
  const uint8_t* weight = segment.quants_of(group, 0);
  const int64_t num_columns = segment.num_blocks * kBlockColumns;
  f32x16 sums[H];
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) sums[h] = f32x16{};
  if constexpr (kFormat == WeightFormat::kBfloat16) {
    for (int64_t pair = 0; pair < num_columns / 2; ++pair, weight += 64) {
#if defined(__AVX512BF16__)
      const __m512bh w = reinterpret_cast<__m512bh>(load<i32x16>(weight));
      const int32_t* x = reinterpret_cast<const int32_t*>(tile) + pair * H;
#pragma GCC unroll 12
      for (int h = 0; h < H; ++h) {
        sums[h] = reinterpret_cast<f32x16>(_mm512_dpbf16_ps(
            reinterpret_cast<__m512>(sums[h]), w, reinterpret_cast<__m512bh>(_mm512_set1_epi32(x[h]))));
      }
#else
      f32x16 even, odd;
      unpack_bfloat16_pair(weight, &even, &odd);
      const float* x = reinterpret_cast<const float*>(tile) + pair * 2 * H;
#pragma GCC unroll 12
      for (int h = 0; h < H; ++h) sums[h] = fma(odd, splat(x[H + h]), fma(even, splat(x[h]), sums[h]));
#endif
    }
  } else {
    const float* x = reinterpret_cast<const float*>(tile);
    for (int64_t column = 0; column < num_columns; ++column, x += H) {
      f32x16 w;
      if constexpr (kFormat == WeightFormat::kFloat32) {
        w = load<f32x16>(weight + column * 64);
      } else {
        w = from_float16(load<u16x16>(weight + column * 32));
      }
#pragma GCC unroll 12
      for (int h = 0; h < H; ++h) sums[h] = fma(w, splat(x[h]), sums[h]);
    }
  }
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) out[h] = sums[h];
}

template <WeightFormat kFormat, int H>
QUIRE_INLINE void multiply_tile(const Segment& segment, int64_t group, const uint8_t* tile, f32x16* out) {
  if constexpr (kFormat == WeightFormat::kFloat32 || kFormat == WeightFormat::kBfloat16 ||
                kFormat == WeightFormat::kFloat16) {
    multiply_floats<kFormat, H>(segment, group, tile, out);
  } else {
    multiply_quantised<kFormat, H>(segment, group, tile, out);
  }
}

template <WeightFormat kFormat>
void multiply_height(const Segment& segment, int64_t group, const uint8_t* tile, int64_t height, f32x16* out) {
#if defined(__AMX_INT8__)
  if (uses_tiles(kFormat, height)) return multiply_with_tiles<kFormat>(segment, group, tile, height, out);
  if (height > kMaxVectorHeight) {
    const int64_t bytes = kMaxVectorHeight * row_bytes(RowFormat::kFloats, segment.num_blocks);
    multiply_tile<kFormat, kMaxVectorHeight>(segment, group, tile, out);
    return multiply_height<kFormat>(segment, group, tile + bytes, height - kMaxVectorHeight, out + kMaxVectorHeight);
  }
#endif
  switch (height) {
    case 1: return multiply_tile<kFormat, 1>(segment, group, tile, out);
    case 2: return multiply_tile<kFormat, 2>(segment, group, tile, out);
    case 3: return multiply_tile<kFormat, 3>(segment, group, tile, out);
    case 4: return multiply_tile<kFormat, 4>(segment, group, tile, out);
#if defined(__AVX512F__)
    case 6: return multiply_tile<kFormat, 6>(segment, group, tile, out);
    case 8: return multiply_tile<kFormat, 8>(segment, group, tile, out);
    case 10: return multiply_tile<kFormat, 10>(segment, group, tile, out);
    case 12: return multiply_tile<kFormat, 12>(segment, group, tile, out);
#endif
  }
}

// y of a tile for a group of 16 outputs: out[h] are the 16 numbers of row h.
inline void multiply(const Segment& segment, int64_t group, const uint8_t* tile, int64_t height, f32x16* out) {
  switch (segment.format) {
    case WeightFormat::kFloat32: return multiply_height<WeightFormat::kFloat32>(segment, group, tile, height, out);
    case WeightFormat::kBfloat16: return multiply_height<WeightFormat::kBfloat16>(segment, group, tile, height, out);
    case WeightFormat::kFloat16: return multiply_height<WeightFormat::kFloat16>(segment, group, tile, height, out);
    case WeightFormat::kInt8: return multiply_height<WeightFormat::kInt8>(segment, group, tile, height, out);
    case WeightFormat::kQ4_0: return multiply_height<WeightFormat::kQ4_0>(segment, group, tile, height, out);
    case WeightFormat::kQ4_1: return multiply_height<WeightFormat::kQ4_1>(segment, group, tile, height, out);
    case WeightFormat::kQ5_0: return multiply_height<WeightFormat::kQ5_0>(segment, group, tile, height, out);
    case WeightFormat::kQ5_1: return multiply_height<WeightFormat::kQ5_1>(segment, group, tile, height, out);
    case WeightFormat::kQ8_0: return multiply_height<WeightFormat::kQ8_0>(segment, group, tile, height, out);
    case WeightFormat::kQ4_K: return multiply_height<WeightFormat::kQ4_K>(segment, group, tile, height, out);
    case WeightFormat::kQ5_K: return multiply_height<WeightFormat::kQ5_K>(segment, group, tile, height, out);
    case WeightFormat::kQ6_K: return multiply_height<WeightFormat::kQ6_K>(segment, group, tile, height, out);
    case WeightFormat::kCount: return;
  }
}

// ---- what becomes of y ----

// Adds the bias of outputs [column, column + count) to y.
QUIRE_INLINE f32x16 with_bias(f32x16 y, const float* bias, int64_t column, int count) {
  return bias == nullptr ? y : y + load_some(bias + column, count);
}

inline void write_out(const LinearTask& task, const f32x16* y, int64_t first_row, int64_t num_rows, int64_t column,
                      int count) {
  for (int64_t h = 0; h < num_rows; ++h) {
    float* place = task.out + (first_row + h) * task.out_width + column;
    f32x16 value = y[h];
    if (task.epilogue == Epilogue::kAdd) value += count == kLanes ? load<f32x16>(place) : load_some(place, count);
    if (count == kLanes) {
      store(place, value);
    } else {
      store_some(place, value, count);
    }
  }
}

// Groups [begin, end) of a segment for all tiles; `rows` is what `prepare_rows` wrote.
inline void multiply_groups(const LinearTask& task, const Segment& segment, const uint8_t* rows, int64_t begin,
                            int64_t end) {
  const RowTiles& tiles = task.tiles;
  const int64_t bytes = row_bytes(row_format(segment.format), tiles.num_blocks);
  f32x16 y[kMaxTileHeight];
  for (int64_t tile = 0; tile < tiles.num_tiles; ++tile) {
    const int64_t first_row = tile * tiles.height, height = tiles.height_of(tile);
    const int64_t num_rows = std::min(tiles.height, tiles.num_rows - first_row);
    const TileShapes shapes(segment.format, height);
    for (int64_t group = begin; group < end; ++group) {
      multiply(segment, group, rows + first_row * bytes, height, y);
      const int64_t lane = group * kGroupRows, column = segment.row_start + lane;
      const int count = static_cast<int>(std::min<int64_t>(kLanes, segment.num_rows - lane));
      for (int64_t h = 0; h < num_rows; ++h) y[h] = with_bias(y[h], task.bias, column, count);
      write_out(task, y, first_row, num_rows, column, count);
    }
  }
}

// Groups [begin, end) of the gate, and those of `up` that belong to them: out = silu(gate) * up.
inline void multiply_gated_groups(const LinearTask& task, const Segment& gate, const Segment& up, int64_t up_group,
                                  const uint8_t* rows, int64_t begin, int64_t end) {
  const RowTiles& tiles = task.tiles;
  const int64_t bytes = row_bytes(row_format(gate.format), tiles.num_blocks);
  f32x16 y[kMaxTileHeight], z[kMaxTileHeight];
  for (int64_t tile = 0; tile < tiles.num_tiles; ++tile) {
    const int64_t first_row = tile * tiles.height, height = tiles.height_of(tile);
    const int64_t num_rows = std::min(tiles.height, tiles.num_rows - first_row);
    const TileShapes shapes(gate.format, height);
    for (int64_t group = begin; group < end; ++group) {
      multiply(gate, group, rows + first_row * bytes, height, y);
      multiply(up, up_group + group, rows + first_row * bytes, height, z);
      const int64_t column = group * kGroupRows;
      for (int64_t h = 0; h < num_rows; ++h) {
        const f32x16 gated = with_bias(y[h], task.bias, column, kLanes);
        y[h] = silu(gated) * with_bias(z[h], task.bias, task.out_width + column, kLanes);
      }
      write_out(task, y, first_row, num_rows, column, kLanes);
    }
  }
}

}  // namespace quire::QUIRE_ISA
