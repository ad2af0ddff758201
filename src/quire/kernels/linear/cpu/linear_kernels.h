// Matrix products of float rows with a packed weight. Included by each instruction set's translation unit.
//
// One design for one row and for hundreds: a micro kernel takes H rows of x and a group of 16 rows of the weight, whose
// numbers it unpacks once per block for all H; where a register holds all 16, it takes two groups, for which a number of
// x is loaded once. A row's sums run over the columns in the same order either way and whatever H is, so its result does
// not depend on the rows beside it.
//
// Quantised weights: x is rounded to int8 in blocks of 32 (the scheme of GGML's CPU kernels), products within a block
// are exact integers, and blocks are added up in float32.
#pragma once

#include <algorithm>

#include "linear/cpu/linear_rows.h"
#include "linear/cpu/linear_unpack.h"
#include "silu_mul/cpu/silu_mul_kernels.h"

namespace quire::QUIRE_ISA {

// ---- products ----

constexpr int64_t kBlocksAhead = 16;

// Sixteen outputs to be computed for a tile: out[h] are those of row h.
struct GroupProduct {
  const Segment* segment;
  int64_t group;
  f32x16* out;
};

#if defined(__AVX512F__)
// Four bytes of x, for every row of a register.
QUIRE_INLINE Quads four_at(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return reinterpret_cast<Quads>(_mm512_set1_epi32(four));
}

// Adds to each sum the products of its four bytes of q with those of x. Of kIsWide the first may exceed 127.
template <bool kIsWide>
QUIRE_INLINE Integers dot4(Integers sums, Quads q, Quads x) {
  const __m512i qs = reinterpret_cast<__m512i>(q), xs = reinterpret_cast<__m512i>(x);
#if defined(__AVX512VNNI__)
  return reinterpret_cast<Integers>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), qs, xs));
#else
  const __m512i ones = _mm512_set1_epi16(1);
  if constexpr (!kIsWide) {
    const __m512i dots = _mm512_madd_epi16(_mm512_maddubs_epi16(qs, xs), ones);
    return sums + reinterpret_cast<Integers>(dots);
  }
  // Pairs of products of larger q do not fit 16 bits: the top bit is multiplied by itself.
  const __m512i low = _mm512_maddubs_epi16(_mm512_and_si512(qs, _mm512_set1_epi8(127)), xs);
  const __m512i top = _mm512_and_si512(_mm512_srli_epi16(qs, 7), _mm512_set1_epi8(1));
  const __m512i high = _mm512_maddubs_epi16(top, xs);
  const __m512i dots = _mm512_add_epi32(_mm512_madd_epi16(low, ones), _mm512_slli_epi32(_mm512_madd_epi16(high, ones), 7));
  return sums + reinterpret_cast<Integers>(dots);
#endif
}
#endif

// Whether q - zero is multiplied, and not q: of many rows that is less work than to correct each by its sum.
template <WeightFormat kFormat, int H>
#if defined(__ARM_FEATURE_DOTPROD)
constexpr bool kTakesSigns = kIsWide<kFormat> || H > 2;
#elif defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kTakesSigns = kIsWide<kFormat>;
#else
constexpr bool kTakesSigns = false;
#endif

// Sums of the products of vectors [kBegin, kEnd) of a block with those columns of H rows.
#if defined(__AVX2__) && !defined(__AVX512F__)
// Each vector is used for all rows before the next is taken: there are 16 registers. Pairs of products are added up in
// 16 bits as long as they cannot overflow, and then in 32. Of 8-bit numbers the sign goes over to x.
template <WeightFormat kFormat, int H, int kBegin, int kEnd>
QUIRE_INLINE void sum_products(const uint8_t* quants, const QuantisedBlock* x, Integers (&dots)[H]) {
  constexpr int kSafe = kIsWide<kFormat> ? 1 : kFormat == WeightFormat::kQ6_K ? 2 : kHasFifthBit<kFormat> ? 4 : 8;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i narrow[H], wide[H];
#pragma GCC unroll 8
  for (int k = kBegin; k < kEnd; ++k) {
    __m256i q = reinterpret_cast<__m256i>(quants_at<kFormat>(quants, k)), size = q;
    if constexpr (kIsWide<kFormat>) {
      q = _mm256_xor_si256(q, _mm256_set1_epi8(-128));
      size = _mm256_abs_epi8(q);
    }
    const bool is_first = (k - kBegin) % kSafe == 0, is_last = k + 1 == kEnd || (k - kBegin) % kSafe == kSafe - 1;
#pragma GCC unroll 6
    for (int h = 0; h < H; ++h) {
      int32_t four;
      std::memcpy(&four, x[h].q + 4 * k, sizeof four);
      __m256i xs = _mm256_set1_epi32(four);
      if constexpr (kIsWide<kFormat>) xs = _mm256_sign_epi8(xs, q);
      const __m256i pairs = _mm256_maddubs_epi16(size, xs);
      narrow[h] = is_first ? pairs : _mm256_add_epi16(narrow[h], pairs);
      keep(narrow[h]);  // or all products are taken first, and wait in memory to be added up
      if (!is_last) continue;
      const __m256i sums = _mm256_madd_epi16(narrow[h], ones);
      wide[h] = k - kBegin < kSafe ? sums : _mm256_add_epi32(wide[h], sums);
    }
  }
#pragma GCC unroll 6
  for (int h = 0; h < H; ++h) dots[h] = reinterpret_cast<Integers>(wide[h]);
}
#elif defined(__ARM_FEATURE_DOTPROD)
// Four vectors stay in registers and the rows take turns: a register of x has the columns of all four.
template <WeightFormat kFormat, int H, int kBegin, int kEnd>
QUIRE_INLINE void sum_products(const uint8_t* quants, const QuantisedBlock* x, Integers (&dots)[H]) {
  constexpr uint8_t kZero = kTakesSigns<kFormat, H> ? traits(kFormat).zero : 0;
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) dots[h] = Integers{};
#pragma GCC unroll 2
  for (int k = kBegin; k < kEnd; k += 4) {
    int8x16_t q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) q[i] = reinterpret_cast<int8x16_t>(quants_at<kFormat>(quants, k + i) - kZero);
#pragma GCC unroll 12
    for (int h = 0; h < H; ++h) {
      const int8x16_t xs = vld1q_s8(x[h].q + 4 * k);
      int32x4_t sums = reinterpret_cast<int32x4_t>(dots[h]);
      sums = vdotq_laneq_s32(sums, q[0], xs, 0);
      sums = vdotq_laneq_s32(sums, q[1], xs, 1);
      sums = vdotq_laneq_s32(sums, q[2], xs, 2);
      sums = vdotq_laneq_s32(sums, q[3], xs, 3);
      dots[h] = reinterpret_cast<Integers>(sums);
    }
  }
}
#elif !defined(__AVX512F__)
template <WeightFormat kFormat, int H, int kBegin, int kEnd>
QUIRE_INLINE void sum_products(const uint8_t* quants, const QuantisedBlock* x, Integers (&dots)[H]) {
  for (int h = 0; h < H; ++h) dots[h] = Integers{};
  for (int k = kBegin; k < kEnd; ++k) {
    const Quads q = quants_at<kFormat>(quants, k);
    for (int h = 0; h < H; ++h) {
      const int8_t* xs = x[h].q + 4 * k;
      Integers sums;
      for (int i = 0; i < kRegisterLanes; ++i) {
        sums[i] = q[4 * i] * xs[0] + q[4 * i + 1] * xs[1] + q[4 * i + 2] * xs[2] + q[4 * i + 3] * xs[3];
      }
      dots[h] += sums;
    }
  }
}
#endif

// The products with the zero of vectors of the first half of a block, or of all of it: -zero * sum of x.
template <WeightFormat kFormat, int H>
QUIRE_INLINE Integers without_zero(Integers dots, int32_t shifted_sum) {
  if constexpr (has_minimum(kFormat) || kTakesSigns<kFormat, H>) {
    return dots;
  } else {
    return dots + (shifted_sum >> zero_shift(kFormat));
  }
}

// Scales the integer products of a block and adds them to a row's sums.
template <WeightFormat kFormat>
QUIRE_INLINE Floats add_dots(const Scales& scales, const QuantisedBlock& x, Integers dots, Floats sums) {
  sums = multiply_add(__builtin_convertvector(dots, Floats), scales.scale * broadcast(x.scale), sums);
  if constexpr (has_minimum(kFormat)) sums = multiply_add(scales.second, broadcast(x.scaled_sum), sums);
  return sums;
}

// The same for the second half of a block of Q6_K.
QUIRE_INLINE Floats add_second_dots(const Scales& scales, const QuantisedBlock& x, Integers dots, Floats sums) {
  return multiply_add(__builtin_convertvector(dots, Floats), scales.second * broadcast(x.scale), sums);
}

#if defined(__AVX512F__)
// Adds the products of a block of each of kGroups groups with H rows to their sums. The blocks stay in registers and
// the rows take turns: a number of x is loaded once for all groups, because loads are what bounds this.
template <WeightFormat kFormat, int H, int kGroups>
QUIRE_INLINE void add_block(const uint8_t* const (&quants)[kGroups], const Scales (&scales)[kGroups],
                            const QuantisedBlock* x, Floats (&sums)[kGroups][H]) {
  constexpr int kHalves = kFormat == WeightFormat::kQ6_K ? 2 : 1, kVectors = 8 / kHalves;
#pragma GCC unroll 2
  for (int half = 0; half < kHalves; ++half) {
    Quads q[kGroups][kVectors];
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 8
      for (int k = 0; k < kVectors; ++k) q[g][k] = quants_at<kFormat>(quants[g], half * kVectors + k);
    }
#pragma GCC unroll 12
    for (int h = 0; h < H; ++h) {
      Integers dots[kGroups] = {};
#pragma GCC unroll 8
      for (int k = 0; k < kVectors; ++k) {
        const Quads four = four_at(x[h].q + 4 * (half * kVectors + k));
        for (int g = 0; g < kGroups; ++g) dots[g] = dot4<kIsWide<kFormat>>(dots[g], q[g][k], four);
      }
      const int32_t shifted_sum = kHalves == 1 ? x[h].shifted_sum
                                  : half == 0  ? x[h].shifted_first
                                               : x[h].shifted_sum - x[h].shifted_first;
      for (int g = 0; g < kGroups; ++g) {
        const Integers found = without_zero<kFormat, H>(dots[g], shifted_sum);
        sums[g][h] = half == 0 ? add_dots<kFormat>(scales[g], x[h], found, sums[g][h])
                               : add_second_dots(scales[g], x[h], found, sums[g][h]);
      }
    }
  }
}
#else
// Adds a block's products of H rows to their sums.
template <WeightFormat kFormat, int H>
QUIRE_INLINE void add_block(const uint8_t* const (&quants)[1], const Scales (&scales)[1], const QuantisedBlock* x,
                            Floats (&sums)[1][H]) {
  constexpr bool kHasHalves = kFormat == WeightFormat::kQ6_K;
  Integers dots[H];
  sum_products<kFormat, H, 0, kHasHalves ? 4 : 8>(quants[0], x, dots);
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) {
    const int32_t shifted_sum = kHasHalves ? x[h].shifted_first : x[h].shifted_sum;
    const Integers first = without_zero<kFormat, H>(dots[h], shifted_sum);
    sums[0][h] = add_dots<kFormat>(scales[0], x[h], first, sums[0][h]);
  }
  if constexpr (kHasHalves) {
    sum_products<kFormat, H, 4, 8>(quants[0], x, dots);
#pragma GCC unroll 12
    for (int h = 0; h < H; ++h) {
      const Integers second = without_zero<kFormat, H>(dots[h], x[h].shifted_sum - x[h].shifted_first);
      sums[0][h] = add_second_dots(scales[0], x[h], second, sums[0][h]);
    }
  }
}
#endif

// Asks for what the loop over the blocks of a group, and of the next, needs some blocks later: a page at a time, which
// is as far as machines look ahead by themselves, keeps memory waiting.
QUIRE_INLINE void prefetch_block(const uint8_t* quants, int64_t quant_bytes, const uint8_t* scales,
                                 int64_t scale_bytes) {
  const uint8_t* ahead = quants + kBlocksAhead * quant_bytes;
  for (int64_t byte = 0; byte < quant_bytes; byte += kCacheLine) __builtin_prefetch(ahead + byte);
  __builtin_prefetch(scales + kBlocksAhead * scale_bytes);
}

// Products of rows [first_row, first_row + kRows) of a tile of H with kGroups quantised groups. Of few rows, which wait
// for memory, a block is taken whole; of many the sums of a part of it fill the registers.
template <WeightFormat kFormat, int H, int kGroups, int kRows>
QUIRE_INLINE void multiply_blocks(const GroupProduct* products, const uint8_t* tile, int first_row) {
  constexpr int kPartsPerPass = H <= 2 ? kParts : 1;
  const Segment& first_segment = *products[0].segment;
  const int64_t quant_bytes = first_segment.quant_bytes(), scale_bytes = traits(kFormat).scale_bytes;
  const int64_t super_bytes = kFormat == WeightFormat::kInt8 ? 0 : traits(kFormat).super_bytes;
  for (int pass = 0; pass < kParts; pass += kPartsPerPass) {
    const QuantisedBlock* x = reinterpret_cast<const QuantisedBlock*>(tile) + first_row;
    const uint8_t *quants[kGroups], *scales[kGroups], *supers[kGroups];
    Floats sums[kPartsPerPass][kGroups][kRows];
    for (int g = 0; g < kGroups; ++g) {
      quants[g] = products[g].segment->quants_of(products[g].group, 0);
      scales[g] = products[g].segment->scales_of(products[g].group, 0);
      supers[g] = products[g].segment->supers_of(products[g].group, 0);
#pragma GCC unroll 4
      for (int part = 0; part < kPartsPerPass; ++part) {
#pragma GCC unroll 12
        for (int h = 0; h < kRows; ++h) sums[part][g][h] = Floats{};
      }
    }
    for (int64_t b = 0; b < first_segment.num_blocks; ++b, x += H) {
      if constexpr (H <= 2) {
        for (int g = 0; g < kGroups; ++g) prefetch_block(quants[g], quant_bytes, scales[g], scale_bytes);
      }
#pragma GCC unroll 4
      for (int part = 0; part < kPartsPerPass; ++part) {
        const int first = (pass + part) * kRegisterLanes;
        const uint8_t* part_quants[kGroups];
        Scales part_scales[kGroups];
        for (int g = 0; g < kGroups; ++g) {
          part_quants[g] = quants[g] + 4 * first;
          part_scales[g] = scales_at<kFormat>(scales[g], supers[g], first);
        }
        add_block<kFormat>(part_quants, part_scales, x, sums[part]);
      }
      for (int g = 0; g < kGroups; ++g) {
        quants[g] += quant_bytes;
        scales[g] += scale_bytes;
        if (b % kSuperBlocks == kSuperBlocks - 1) supers[g] += super_bytes;
      }
    }
    for (int g = 0; g < kGroups; ++g) {
      float* out = reinterpret_cast<float*>(products[g].out + first_row);
#pragma GCC unroll 4
      for (int part = 0; part < kPartsPerPass; ++part) {
#pragma GCC unroll 12
        for (int h = 0; h < kRows; ++h) {
          store(out + h * kGroupRows + (pass + part) * kRegisterLanes, sums[part][g][h]);
        }
      }
    }
  }
}

// Whether a number of x is loaded once for two groups: where there is little else to do with it.
template <WeightFormat kFormat>
#if defined(__AVX512VNNI__)
constexpr bool kTakesTwoGroups = true;
#elif defined(__AVX512F__)
constexpr bool kTakesTwoGroups = !kIsWide<kFormat>;
#else
constexpr bool kTakesTwoGroups = false;
#endif

template <WeightFormat kFormat, int H>
void multiply_quantised(const GroupProduct* products, int num_products, const uint8_t* tile) {
  if constexpr (kTakesTwoGroups<kFormat>) {
    if (num_products == 2) {
      // Beside the blocks of two groups there is room for the sums of half a high tile.
      constexpr int kRows = H <= kMaxVectorHeight / 2 ? H : H / 2;
      for (int row = 0; row < H; row += kRows) multiply_blocks<kFormat, H, 2, kRows>(products, tile, row);
      return;
    }
  }
  for (int i = 0; i < num_products; ++i) multiply_blocks<kFormat, H, 1, H>(products + i, tile, 0);
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

// Registers of rows that a loop over the columns takes at once, if it can: their sums do not wait for each other.
constexpr int kRegistersAtOnce = 2;

// Adds the products of a column of kCount registers of rows with H rows of x.
template <int H, int kCount>
QUIRE_INLINE void add_column(const Floats (&w)[kCount], const float* x, Floats (&sums)[kCount][H]) {
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) {
    const Floats xs = broadcast(x[h]);
    for (int i = 0; i < kCount; ++i) add_product(sums[i][h], w[i], xs);
  }
}

// Products of a tile of H rows with kCount registers of rows of floats: `weights` are their first columns, row h's
// results go to outs[i] + h * kGroupRows.
template <WeightFormat kFormat, int H, int kCount>
QUIRE_INLINE void multiply_columns(const uint8_t* (&weights)[kCount], int64_t num_columns, const float* x,
                                   float* (&outs)[kCount]) {
  constexpr int kColumns = kColumnsAtOnce<kFormat>;
  Floats sums[kCount][H];
#pragma GCC unroll 2
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 12
    for (int h = 0; h < H; ++h) sums[i][h] = Floats{};
  }
  for (int64_t column = 0; column < num_columns; column += kColumns, x += kColumns * H) {
#pragma GCC unroll 2
    for (int c = 0; c < kColumns; ++c) {
      Floats w[kCount];
      for (int i = 0; i < kCount; ++i) w[i] = column_at<kFormat>(weights[i], c);
      add_column<H>(w, x + c * H, sums);
    }
    for (int i = 0; i < kCount; ++i) weights[i] += kGroupRows * kRowStepBytes<kFormat>;
  }
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 12
    for (int h = 0; h < H; ++h) store(outs[i] + h * kGroupRows, sums[i][h]);
  }
}

#if defined(__AVX512BF16__)
// The same for machines that multiply bfloat16.
template <int H>
QUIRE_INLINE void multiply_bfloat16(const GroupProduct& product, const uint8_t* tile) {
  const uint8_t* weight = product.segment->quants_of(product.group, 0);
  const int64_t num_columns = product.segment->num_blocks * kBlockColumns;
  const int32_t* x = reinterpret_cast<const int32_t*>(tile);
  __m512 sums[H];
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) sums[h] = _mm512_setzero_ps();
  for (int64_t column = 0; column < num_columns; column += 2, weight += 64, x += H) {
    const __m512bh w = reinterpret_cast<__m512bh>(load<i32x16>(weight));
#pragma GCC unroll 12
    for (int h = 0; h < H; ++h) {
      sums[h] = _mm512_dpbf16_ps(sums[h], w, reinterpret_cast<__m512bh>(_mm512_set1_epi32(x[h])));
    }
  }
#pragma GCC unroll 12
  for (int h = 0; h < H; ++h) product.out[h] = reinterpret_cast<f32x16>(sums[h]);
}
#endif

// Products of a tile of H rows with groups of floats, a few registers at a time.
template <WeightFormat kFormat, int H>
void multiply_floats(const GroupProduct* products, int num_products, const uint8_t* tile) {
  const int64_t num_columns = products[0].segment->num_blocks * kBlockColumns;
  const float* x = reinterpret_cast<const float*>(tile);
  const auto weight_of = [&](int index) {
    const GroupProduct& product = products[index / kParts];
    const int64_t offset = index % kParts * kRegisterLanes * kRowStepBytes<kFormat>;
    return product.segment->quants_of(product.group, 0) + offset;
  };
  const auto out_of = [&](int index) {
    return reinterpret_cast<float*>(products[index / kParts].out) + index % kParts * kRegisterLanes;
  };
  const int num_registers = num_products * kParts;
  int index = 0;
  for (; index + kRegistersAtOnce <= num_registers; index += kRegistersAtOnce) {
    const uint8_t* weights[] = {weight_of(index), weight_of(index + 1)};
    float* outs[] = {out_of(index), out_of(index + 1)};
    multiply_columns<kFormat, H>(weights, num_columns, x, outs);
  }
  if (index == num_registers) return;
  const uint8_t* weights[] = {weight_of(index)};
  float* outs[] = {out_of(index)};
  multiply_columns<kFormat, H>(weights, num_columns, x, outs);
}

template <WeightFormat kFormat, int H>
QUIRE_INLINE void multiply_tile(const GroupProduct* products, int num_products, const uint8_t* tile) {
#if defined(__AVX512BF16__)
  if constexpr (kFormat == WeightFormat::kBfloat16) {
    for (int i = 0; i < num_products; ++i) multiply_bfloat16<H>(products[i], tile);
    return;
  }
#endif
  if constexpr (traits(kFormat).is_quantised) {
    multiply_quantised<kFormat, H>(products, num_products, tile);
  } else {
    multiply_floats<kFormat, H>(products, num_products, tile);
  }
}

template <WeightFormat kFormat>
void multiply_height(const GroupProduct* products, int num_products, const uint8_t* tile, int64_t height) {
#if defined(__AMX_INT8__)
  if (uses_tiles(kFormat, height)) {
    for (int i = 0; i < num_products; ++i) multiply_with_tiles<kFormat>(products[i], tile, height);
    return;
  }
  if (height > kMaxVectorHeight) {
    const int64_t bytes = kMaxVectorHeight * row_bytes(RowFormat::kFloats, products[0].segment->num_blocks);
    multiply_tile<kFormat, kMaxVectorHeight>(products, num_products, tile);
    GroupProduct rest[kGroupsAtOnce];
    for (int i = 0; i < num_products; ++i) {
      rest[i] = {products[i].segment, products[i].group, products[i].out + kMaxVectorHeight};
    }
    return multiply_height<kFormat>(rest, num_products, tile + bytes, height - kMaxVectorHeight);
  }
#endif
  switch (height) {
    case 1: return multiply_tile<kFormat, 1>(products, num_products, tile);
    case 2: return multiply_tile<kFormat, 2>(products, num_products, tile);
    case 3: return multiply_tile<kFormat, 3>(products, num_products, tile);
    case 4: return multiply_tile<kFormat, 4>(products, num_products, tile);
    case 6: return multiply_tile<kFormat, 6>(products, num_products, tile);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 8: return multiply_tile<kFormat, 8>(products, num_products, tile);
    case 10: return multiply_tile<kFormat, 10>(products, num_products, tile);
    case 12: return multiply_tile<kFormat, 12>(products, num_products, tile);
#endif
  }
}

// y of a tile for up to kGroupsAtOnce groups of 16 outputs, all of one format.
inline void multiply(const GroupProduct* products, int num_products, const uint8_t* tile, int64_t height) {
  switch (products[0].segment->format) {
    case WeightFormat::kFloat32: return multiply_height<WeightFormat::kFloat32>(products, num_products, tile, height);
    case WeightFormat::kBfloat16: return multiply_height<WeightFormat::kBfloat16>(products, num_products, tile, height);
    case WeightFormat::kFloat16: return multiply_height<WeightFormat::kFloat16>(products, num_products, tile, height);
    case WeightFormat::kInt8: return multiply_height<WeightFormat::kInt8>(products, num_products, tile, height);
    case WeightFormat::kQ4_0: return multiply_height<WeightFormat::kQ4_0>(products, num_products, tile, height);
    case WeightFormat::kQ4_1: return multiply_height<WeightFormat::kQ4_1>(products, num_products, tile, height);
    case WeightFormat::kQ5_0: return multiply_height<WeightFormat::kQ5_0>(products, num_products, tile, height);
    case WeightFormat::kQ5_1: return multiply_height<WeightFormat::kQ5_1>(products, num_products, tile, height);
    case WeightFormat::kQ8_0: return multiply_height<WeightFormat::kQ8_0>(products, num_products, tile, height);
    case WeightFormat::kQ4_K: return multiply_height<WeightFormat::kQ4_K>(products, num_products, tile, height);
    case WeightFormat::kQ5_K: return multiply_height<WeightFormat::kQ5_K>(products, num_products, tile, height);
    case WeightFormat::kQ6_K: return multiply_height<WeightFormat::kQ6_K>(products, num_products, tile, height);
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
  f32x16 y[kGroupsAtOnce][kMaxTileHeight];
  for (int64_t tile = 0; tile < tiles.num_tiles; ++tile) {
    const int64_t first_row = tile * tiles.height, height = tiles.height_of(tile);
    const int64_t num_rows = std::min(tiles.height, tiles.num_rows - first_row);
    const TileShapes shapes(segment.format, height);
    for (int64_t group = begin; group < end; group += kGroupsAtOnce) {
      const GroupProduct products[] = {{&segment, group, y[0]}, {&segment, group + 1, y[1]}};
      const int num_products = static_cast<int>(std::min<int64_t>(kGroupsAtOnce, end - group));
      multiply(products, num_products, rows + first_row * bytes, height);
      for (int i = 0; i < num_products; ++i) {
        const int64_t lane = (group + i) * kGroupRows, column = segment.row_start + lane;
        const int count = static_cast<int>(std::min<int64_t>(kLanes, segment.num_rows - lane));
        for (int64_t h = 0; h < num_rows; ++h) y[i][h] = with_bias(y[i][h], task.bias, column, count);
        write_out(task, y[i], first_row, num_rows, column, count);
      }
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
      const GroupProduct products[] = {{&gate, group, y}, {&up, up_group + group, z}};
      multiply(products, kGroupsAtOnce, rows + first_row * bytes, height);
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
