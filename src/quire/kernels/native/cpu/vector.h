// Sixteen numbers at a time, in the compiler's own vector types: one source for every instruction set.
//
// Included once by each instruction set's translation unit, which names its namespace in QUIRE_ISA. A vector that is
// wider than the machine's registers becomes several of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define QUIRE_INLINE inline __attribute__((always_inline))

namespace quire::QUIRE_ISA {

constexpr int kLanes = 16;

typedef float f32x16 __attribute__((vector_size(64)));
typedef double f64x16 __attribute__((vector_size(128)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));

// What fits in one register of the machine.
#if defined(__AVX512F__)
constexpr int kRegisterLanes = 16;
#elif defined(__AVX__)
constexpr int kRegisterLanes = 8;
#else
constexpr int kRegisterLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kRegisterLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kRegisterLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kRegisterLanes)));

// A vector anywhere in memory. Not memcpy: GCC 12 then takes the way over the stack.
template <typename V>
struct InMemory {
  typedef V Vector __attribute__((aligned(1), may_alias));
};

template <typename V>
QUIRE_INLINE V load(const void* from) {
  return *static_cast<const typename InMemory<V>::Vector*>(from);
}

template <typename V>
QUIRE_INLINE void store(void* to, V value) {
  *static_cast<typename InMemory<V>::Vector*>(to) = value;
}

QUIRE_INLINE f32x16 splat(float value) {
  return f32x16{value, value, value, value, value, value, value, value, value, value, value, value, value, value, value, value};
}

QUIRE_INLINE i32x16 splat(int32_t value) {
  return i32x16{value, value, value, value, value, value, value, value, value, value, value, value, value, value, value, value};
}

// The first `count` of 16 floats; the others are zero.
QUIRE_INLINE f32x16 load_some(const float* from, int count) {
#if defined(__AVX512F__)
  const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
  return reinterpret_cast<f32x16>(_mm512_maskz_loadu_ps(lanes, from));
#else
  if (count == kLanes) return load<f32x16>(from);
  f32x16 value{};
  std::memcpy(&value, from, static_cast<size_t>(count) * sizeof(float));
  return value;
#endif
}

QUIRE_INLINE void store_some(float* to, f32x16 value, int count) {
#if defined(__AVX512F__)
  const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
  _mm512_mask_storeu_ps(to, lanes, reinterpret_cast<__m512>(value));
#else
  if (count == kLanes) return store(to, value);
  std::memcpy(to, &value, static_cast<size_t>(count) * sizeof(float));
#endif
}

// a * b + c, rounded once where the machine has such an instruction.
QUIRE_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
  return reinterpret_cast<f32x16>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#else
  return a * b + c;
#endif
}

// Comparisons are done on vectors as wide as a register: compilers take wider ones apart into single numbers.
template <typename Result, typename Register, typename Operation>
QUIRE_INLINE Result by_register(Operation operation, f32x16 a, f32x16 b) {
  constexpr int kRegisters = kLanes / kRegisterLanes;
  Floats parts_a[kRegisters], parts_b[kRegisters];
  Register results[kRegisters];
  std::memcpy(parts_a, &a, sizeof a);
  std::memcpy(parts_b, &b, sizeof b);
  for (int i = 0; i < kRegisters; ++i) results[i] = operation(parts_a[i], parts_b[i]);
  return load<Result>(results);
}

#define QUIRE_BY_REGISTER(Result, Register, expression)                                                       \
  by_register<Result, Register>(                                                                              \
      [](Floats x, Floats y) __attribute__((always_inline)) -> Register { return expression; }, a, b)

// The second of two numbers of which one is NaN.
QUIRE_INLINE f32x16 max(f32x16 a, f32x16 b) {
  return QUIRE_BY_REGISTER(f32x16, Floats, (x > y ? x : y));
}

QUIRE_INLINE f32x16 min(f32x16 a, f32x16 b) {
  return QUIRE_BY_REGISTER(f32x16, Floats, (x < y ? x : y));
}

// Lanes of -1 where it is so, 0 elsewhere.
QUIRE_INLINE i32x16 is_less(f32x16 a, f32x16 b) {
  return QUIRE_BY_REGISTER(i32x16, Integers, x < y);
}

QUIRE_INLINE i32x16 is_at_least(f32x16 a, f32x16 b) {
  return QUIRE_BY_REGISTER(i32x16, Integers, x >= y);
}

QUIRE_INLINE i32x16 is_equal(f32x16 a, f32x16 b) {
  return QUIRE_BY_REGISTER(i32x16, Integers, x == y);
}

#undef QUIRE_BY_REGISTER

QUIRE_INLINE f32x16 select(i32x16 mask, f32x16 a, f32x16 b) {
  return reinterpret_cast<f32x16>((reinterpret_cast<i32x16>(a) & mask) | (reinterpret_cast<i32x16>(b) & ~mask));
}

QUIRE_INLINE f32x16 keep_where(i32x16 mask, f32x16 a) {
  return reinterpret_cast<f32x16>(reinterpret_cast<i32x16>(a) & mask);
}

QUIRE_INLINE f32x16 abs(f32x16 a) {
  return reinterpret_cast<f32x16>(reinterpret_cast<u32x16>(a) & 0x7fffffffu);
}

// Nearest integers, ties to even, of numbers below 2^22.
QUIRE_INLINE i32x16 round_to_int(f32x16 a) {
#if defined(__AVX512F__)
  return reinterpret_cast<i32x16>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(a)));
#else
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
  return reinterpret_cast<i32x16>(a + magic) - 0x4b400000;
#endif
}

// Sums of a vector in a fixed order: halves are folded onto each other.
QUIRE_INLINE float sum(f32x16 a) {
  float lanes[16];
  store(lanes, a);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

QUIRE_INLINE float largest(f32x16 a) {
#if defined(__AVX512F__)
  a = max(a, __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  a = max(a, __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  a = max(a, __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  a = max(a, __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return a[0];
#else
  float lanes[16];
  store(lanes, a);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
#endif
}

// A mask's lanes as bits, lane 0 the lowest.
QUIRE_INLINE uint32_t mask_bits(i32x16 mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX__)
  __m256 halves[2];
  std::memcpy(halves, &mask, sizeof mask);
  return static_cast<uint32_t>(_mm256_movemask_ps(halves[0]) | _mm256_movemask_ps(halves[1]) << 8);
#else
  int32_t lanes[16];
  store(lanes, mask);
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= (static_cast<uint32_t>(lanes[i]) >> 31) << i;
  return bits;
#endif
}

QUIRE_INLINE i32x16 lane_numbers() {
  return i32x16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

// The mask of those bits.
QUIRE_INLINE i32x16 mask_of(uint32_t bits) {
  // The lane's bit becomes the sign, which the second shift spreads.
  return reinterpret_cast<i32x16>((u32x16{} + bits) << reinterpret_cast<u32x16>(31 - lane_numbers())) >> 31;
}

// Stores the lanes whose bits are set one after the other and returns their number; may write 16 floats.
QUIRE_INLINE int store_chosen(float* to, f32x16 value, uint32_t bits) {
  const int count = __builtin_popcount(bits);
#if defined(__AVX512F__)
  const __m512 chosen = _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), reinterpret_cast<__m512>(value));
  _mm512_storeu_ps(to, chosen);
#else
  float lanes[16];
  store(lanes, value);
  for (; bits != 0; bits &= bits - 1) *to++ = lanes[__builtin_ctz(bits)];
#endif
  return count;
}

// Rounds to nearest, ties to even; a NaN stays one.
QUIRE_INLINE u16x16 to_bfloat16(f32x16 a) {
  const u32x16 bits = reinterpret_cast<u32x16>(a);
  const u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32x16 quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector(a == a ? rounded : quiet, u16x16);
}

QUIRE_INLINE f32x16 from_float16(u16x16 a) {
#if defined(__AVX512F__)
  return reinterpret_cast<f32x16>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(a)));
#elif defined(__F16C__)
  f32x16 value;
  __m128i halves[2];
  std::memcpy(halves, &a, sizeof a);
  const __m256 parts[2] = {_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1])};
  std::memcpy(&value, parts, sizeof value);
  return value;
#else
  // The exponent's bias is corrected by a multiplication, which also takes care of subnormal numbers.
  const u32x16 wide = __builtin_convertvector(a, u32x16);
  const u32x16 sign = (wide & 0x8000u) << 16;
  const u32x16 magnitude = (wide & 0x7fffu) << 13;
  const f32x16 scaled = reinterpret_cast<f32x16>(magnitude) * 0x1p112f;
  const u32x16 special = magnitude | 0x7f800000u;  // infinity or NaN
  const u32x16 bits = (wide & 0x7c00u) == 0x7c00u ? special : reinterpret_cast<u32x16>(scaled);
  return reinterpret_cast<f32x16>(bits | sign);
#endif
}

QUIRE_INLINE u16x16 to_float16(f32x16 a) {
#if defined(__AVX512F__)
  return reinterpret_cast<u16x16>(_mm512_cvtps_ph(reinterpret_cast<__m512>(a), _MM_FROUND_TO_NEAREST_INT));
#else
  uint16_t halves[16];
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < 16; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &lanes[i], sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
      halves[i] = static_cast<uint16_t>(sign | 0x7e00u);
    } else if (magnitude >= 0x477ff000u) {  // rounds to more than 65504
      halves[i] = static_cast<uint16_t>(sign | 0x7c00u);
    } else if (magnitude < 0x38800000u) {  // subnormal: the addition rounds at the right bit
      float value;
      std::memcpy(&value, &magnitude, sizeof value);
      value += 0.5f;
      std::memcpy(&bits, &value, sizeof bits);
      halves[i] = static_cast<uint16_t>(sign | (bits - 0x3f000000u));
    } else {
      const uint32_t odd = (magnitude >> 13) & 1u;
      halves[i] = static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
    }
  }
  return load<u16x16>(halves);
#endif
}

// e^a within 2 units in the last place; 0 far below, infinity above 88.7, NaN for NaN, 1 for 0.
// Cody and Waite's reduction to [-ln 2 / 2, ln 2 / 2], there 1 + r * (a polynomial fitted to (e^r - 1) / r).
QUIRE_INLINE Floats exp_in_register(Floats a) {
  const Floats above = a < -104.0f ? -104.0f - Floats{} : a;  // comparisons that leave NaN as it is
  const Floats clipped = above > 89.0f ? 89.0f - Floats{} : above;
  const float magic = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer
  const Floats shifted = clipped * 1.44269504f + magic;
  const Floats n = shifted - magic;
  const Floats r = n * 2.12194440e-4f + (n * -0.693359375f + clipped);
  Floats p = r * 0.00139411633f + 0.00836918688f;
  p = p * r + 0.0416663522f;
  p = p * r + 0.166665049f;
  p = p * r + 0.500000005f;
  p = p * r + 1.00000001f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  // Two factors: 2^n itself may not be a normal number.
  const Integers power = reinterpret_cast<Integers>(shifted) - 0x4b400000;
  const Integers half = power >> 1;
  const Floats low = reinterpret_cast<Floats>((half + 127) << 23);
  const Floats high = reinterpret_cast<Floats>((power - half + 127) << 23);
  const Floats result = p * low * high;
  return a == a ? result : a;
#endif
}

QUIRE_INLINE f32x16 exp(f32x16 a) {
  Floats parts[kLanes / kRegisterLanes];
  std::memcpy(parts, &a, sizeof a);
  for (Floats& part : parts) part = exp_in_register(part);
  return load<f32x16>(parts);
}

// Within some units in the last place: an odd polynomial near 0, elsewhere 1 - 2 / (e^2|a| + 1).
QUIRE_INLINE f32x16 tanh(f32x16 a) {
  const f32x16 square = a * a, size = abs(a);
  f32x16 p = splat(0.00221844215f);
  p = fma(p, square, splat(-0.00827621804f));
  p = fma(p, square, splat(0.0217475894f));
  p = fma(p, square, splat(-0.0539565637f));
  p = fma(p, square, splat(0.133332919f));
  p = fma(p, square, splat(-0.333333331f));
  const f32x16 near = fma(p, square * a, a);
  const f32x16 far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  const u32x16 sign = reinterpret_cast<u32x16>(a) & 0x80000000u;
  return size < 0.65f ? near : reinterpret_cast<f32x16>(reinterpret_cast<u32x16>(far) | sign);
}

}  // namespace quire::QUIRE_ISA
