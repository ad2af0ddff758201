// The numbers of a packed weight, a register of rows at a time. Included by each instruction set's translation unit.
#pragma once

#include "native/cpu/registers.h"
#include "linear/cpu/packed_weight.h"

namespace quire::QUIRE_ISA {

// Four bytes for each row of a register.
typedef uint8_t Quads __attribute__((vector_size(4 * kRegisterLanes)));
typedef uint16_t QuadHalves __attribute__((vector_size(4 * kRegisterLanes)));

// Registers for the 16 rows of a group.
constexpr int kParts = kGroupRows / kRegisterLanes;

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

// Every byte moved left by so many bits, or right by that many less than 0, and masked.
QUIRE_INLINE Quads shifted(Quads a, int left, uint8_t mask) {
  const QuadHalves halves = reinterpret_cast<QuadHalves>(a);
  return reinterpret_cast<Quads>(left >= 0 ? halves << left : halves >> -left) & mask;
}

// The integers q of vector `k` of a block: columns 4 * k to 4 * k + 3 of some rows, whose bytes begin at `quants`.
template <WeightFormat kFormat>
QUIRE_INLINE Quads quants_at(const uint8_t* quants, int k) {
  constexpr int kVectorBytes = 4 * kGroupRows;
  if constexpr (kIsWide<kFormat>) return load<Quads>(quants + kVectorBytes * k);
  Quads q = shifted(load<Quads>(quants + kVectorBytes * (k % 4)), k < 4 ? 0 : -4, 15);
  if constexpr (kHasFifthBit<kFormat>) q |= shifted(load<Quads>(quants + kVectorBytes * 4), 4 - k, 16);
  if constexpr (kFormat == WeightFormat::kQ6_K) {
    // Two bits of the byte become bits 4 and 5.
    q |= shifted(load<Quads>(quants + kVectorBytes * (4 + k / 4)), 4 - k % 4 * 2, 48);
  }
  return q;
}

// How the integers of a block are scaled, for the rows of a register.
struct Scales {
  Floats scale;
  Floats second;  // the minimum, or the scale of the second half of the block
};

QUIRE_INLINE Floats float16_at(const uint8_t* from) {
#if defined(__AVX512F__)
  return from_float16(load<u16x16>(from));
#elif defined(__F16C__)
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  return from_float16_words(__builtin_convertvector(load<Halves>(from), Words));
#endif
}

QUIRE_INLINE Floats bytes_at(const uint8_t* from) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Floats>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
#else
  typedef uint8_t Unsigned __attribute__((vector_size(kRegisterLanes)));
  return __builtin_convertvector(__builtin_convertvector(load<Unsigned>(from), Integers), Floats);
#endif
}

QUIRE_INLINE Floats signed_bytes_at(const uint8_t* from) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Floats>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
#else
  return __builtin_convertvector(__builtin_convertvector(load<Bytes>(from), Integers), Floats);
#endif
}

// Of rows [first, first + kRegisterLanes) of a group.
template <WeightFormat kFormat>
QUIRE_INLINE Scales scales_at(const uint8_t* scales, const uint8_t* supers, int first) {
  if constexpr (kFormat == WeightFormat::kInt8) return {load<Floats>(supers + 4 * first), Floats{}};
  if constexpr (kFormat == WeightFormat::kQ4_K || kFormat == WeightFormat::kQ5_K) {
    const Floats least = float16_at(supers + 32 + 2 * first) * bytes_at(scales + 16 + first);
    return {float16_at(supers + 2 * first) * bytes_at(scales + first), -least};
  }
  if constexpr (kFormat == WeightFormat::kQ6_K) {
    const Floats d = float16_at(supers + 2 * first);
    return {d * signed_bytes_at(scales + first), d * signed_bytes_at(scales + 16 + first)};
  }
  if constexpr (!has_minimum(kFormat)) return {float16_at(scales + 2 * first), Floats{}};
  return {float16_at(scales + 2 * first), float16_at(scales + 32 + 2 * first)};
}

template <WeightFormat kFormat>
constexpr int kNumberBytesOf = kFormat == WeightFormat::kFloat32 ? 4 : 2;

// Two columns of bfloat16 stand side by side, one of the other formats.
template <WeightFormat kFormat>
constexpr int kColumnsAtOnce = kFormat == WeightFormat::kBfloat16 ? 2 : 1;

// A register of rows from row `first` of column `i` of the kColumnsAtOnce at `weight`.
template <WeightFormat kFormat>
QUIRE_INLINE Floats column_at(const uint8_t* weight, int i, int first) {
  if constexpr (kFormat == WeightFormat::kFloat32) return load<Floats>(weight + 4 * first);
  if constexpr (kFormat == WeightFormat::kFloat16) return float16_at(weight + 2 * first);
  const Words pairs = load<Words>(weight + 4 * first);
  return reinterpret_cast<Floats>(i == 0 ? pairs << 16 : pairs & 0xffff0000u);
}

}  // namespace quire::QUIRE_ISA
