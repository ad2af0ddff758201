// The numbers of a packed weight, a register of rows at a time. Included by each instruction set's translation unit.
#pragma once

#include <bit>

#include "native/cpu/registers.h"
#include "linear/cpu/packed_weight.h"

namespace quire::QUIRE_ISA {

// Four bytes for each row of a register.
typedef uint8_t Quads __attribute__((vector_size(4 * kRegisterLanes)));
typedef uint16_t QuadHalves __attribute__((vector_size(4 * kRegisterLanes)));

// Registers for the 16 rows of a group.
constexpr int kParts = kGroupRows / kRegisterLanes;

constexpr bool has_minimum(WeightFormat format) {
  return traits(format).has_minimum;
}

// -128 * sum of x is shifted right by so much to become -zero * sum of x, where there is a zero.
constexpr int zero_shift(WeightFormat format) {
  return std::countr_zero(128u) - std::countr_zero(static_cast<unsigned>(traits(format).zero));
}

template <WeightFormat kFormat>
constexpr bool kHasFifthBit = traits(kFormat).bits == 5;

template <WeightFormat kFormat>
constexpr bool kIsWide = traits(kFormat).bits == 8;

// Every byte moved left by so many bits, or right by that many less than 0, and masked.
QUIRE_INLINE Quads shifted(Quads a, int left, uint8_t mask) {
#if defined(__aarch64__)
  if (left < 0 && mask == 255 >> -left) return a >> -left;  // bytes can be shifted there
#endif
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

// Of rows [first, first + kRegisterLanes) of a group.
template <WeightFormat kFormat>
QUIRE_INLINE Scales scales_at(const uint8_t* scales, const uint8_t* supers, int first) {
  if constexpr (kFormat == WeightFormat::kInt8) return {load<Floats>(supers + 4 * first), Floats{}};
  if constexpr (kFormat == WeightFormat::kQ4_K || kFormat == WeightFormat::kQ5_K) {
    const Floats least = float16_at(supers + 32 + 2 * first) * numbers_at<uint8_t>(scales + 16 + first);
    return {float16_at(supers + 2 * first) * numbers_at<uint8_t>(scales + first), -least};
  }
  if constexpr (kFormat == WeightFormat::kQ6_K) {
    const Floats d = float16_at(supers + 2 * first);
    return {d * numbers_at<int8_t>(scales + first), d * numbers_at<int8_t>(scales + 16 + first)};
  }
  if constexpr (!has_minimum(kFormat)) return {float16_at(scales + 2 * first), Floats{}};
  return {float16_at(scales + 2 * first), float16_at(scales + 32 + 2 * first)};
}

// Two columns of bfloat16 stand side by side, one of the other formats.
template <WeightFormat kFormat>
constexpr int kColumnsAtOnce = kFormat == WeightFormat::kBfloat16 ? 2 : 1;

// Bytes of a row's numbers in kColumnsAtOnce columns.
template <WeightFormat kFormat>
constexpr int kRowStepBytes = kColumnsAtOnce<kFormat> * traits(kFormat).bits / 8;

// A register of rows of column `i` of the kColumnsAtOnce that are at `weight` for the first of these rows.
template <WeightFormat kFormat>
QUIRE_INLINE Floats column_at(const uint8_t* weight, int i) {
  if constexpr (kFormat == WeightFormat::kFloat32) return load<Floats>(weight);
  if constexpr (kFormat == WeightFormat::kFloat16) return float16_at(weight);
  const Words pairs = load<Words>(weight);
  return reinterpret_cast<Floats>(i == 0 ? pairs << 16 : pairs & 0xffff0000u);
}

}  // namespace quire::QUIRE_ISA
