// One register of floats, for loops whose sums must stay in registers. Included by each instruction set's translation
// unit.
//
// A vector wider than the machine's registers (vector.h) goes through memory where a loop carries it.
#pragma once

#include <type_traits>

#include "native/cpu/vector.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace quire::QUIRE_ISA {

typedef uint16_t Halves __attribute__((vector_size(2 * kRegisterLanes)));

QUIRE_INLINE Floats broadcast(float value) {
  return value - Floats{};
}

// The second of two numbers of which one is NaN.
QUIRE_INLINE Floats max_in_register(Floats a, Floats b) {
  return a > b ? a : b;
}

QUIRE_INLINE Floats abs_in_register(Floats a) {
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(a) & 0x7fffffffu);
}

QUIRE_INLINE bool is_zero(Floats a) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), _mm512_setzero_ps(), _CMP_EQ_OQ) == 0xffff;
#elif defined(__AVX__)
  return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(a), _mm256_setzero_ps(), _CMP_EQ_OQ)) == 0xff;
#else
  bool is_zero = true;
  for (int i = 0; i < kRegisterLanes; ++i) is_zero = is_zero && a[i] == 0.0f;
  return is_zero;
#endif
}

QUIRE_INLINE float largest_in_register(Floats a) {
#if defined(__AVX512F__)
  return largest(a);
#elif defined(__AVX__)
  const __m256 all = reinterpret_cast<__m256>(a);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
  float lanes[kRegisterLanes];
  store(lanes, a);
  for (int width = kRegisterLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
#endif
}

// Keeps the compiler from working a register's content out anew for each use, or in another order.
template <typename Register>
QUIRE_INLINE void keep(Register& value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
}

// a * b + c, rounded once where the machine has such an instruction. The compiler cannot choose another product of the
// sum to fuse.
QUIRE_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return fma(a, b, c);
#elif defined(__FMA__)
  return reinterpret_cast<Floats>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                                  reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                            reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

// sum += a * b. In the register of the sum: GCC 12 takes that of a factor else, and runs out of them.
QUIRE_INLINE void add_product(Floats& sum, Floats a, Floats b) {
#if defined(__FMA__) && !defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
  sum = multiply_add(a, b, sum);
#endif
}

// The lower halves of two registers, and the upper ones, number by number: a0 b0 a1 b1 ...
QUIRE_INLINE Words zip_low(Words a, Words b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

QUIRE_INLINE Words zip_high(Words a, Words b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Word j of register i becomes word i of register j: zipping halves log2(lanes) times.
QUIRE_INLINE void transpose(Words (&rows)[kRegisterLanes]) {
  constexpr int kHalf = kRegisterLanes / 2;
#pragma GCC unroll 4
  for (int width = 1; width < kRegisterLanes; width *= 2) {
    Words zipped[kRegisterLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      zipped[2 * i] = zip_low(rows[i], rows[i + kHalf]);
      zipped[2 * i + 1] = zip_high(rows[i], rows[i + kHalf]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRegisterLanes; ++i) rows[i] = zipped[i];
  }
}

// A register of bytes of either sign, or of unsigned ones, as floats.
template <typename Byte>
QUIRE_INLINE Floats numbers_at(const uint8_t* from) {
  static_assert(sizeof(Byte) == 1);
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  const bool is_signed = std::is_signed_v<Byte>;
  return reinterpret_cast<Floats>(
      _mm256_cvtepi32_ps(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes)));
#elif defined(__aarch64__)
  // In the top bytes of words: GCC 12 widens one number at a time else.
  uint32_t four;
  std::memcpy(&four, from, sizeof four);
  const Words top = (four - Words{}) << Words{24, 16, 8, 0};
  if constexpr (std::is_signed_v<Byte>) return __builtin_convertvector(reinterpret_cast<Integers>(top) >> 24, Floats);
  return __builtin_convertvector(top >> 24, Floats);
#else
  typedef Byte Several __attribute__((vector_size(kRegisterLanes)));
  return __builtin_convertvector(__builtin_convertvector(load<Several>(from), Integers), Floats);
#endif
}

// The float16 numbers in the lower halves of words.
QUIRE_INLINE Floats from_float16_words(Words a) {
#if defined(__AVX512F__)
  return from_float16(__builtin_convertvector(a, u16x16));
#elif defined(__F16C__)
  const __m256i words = reinterpret_cast<__m256i>(a & 0xffffu);
  const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(halves));
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(reinterpret_cast<uint32x4_t>(a)))));
#else
  const Words sign = (a & 0x8000u) << 16;
  const Words magnitude = (a & 0x7fffu) << 13;
  const Words scaled = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
  return reinterpret_cast<Floats>(((a & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : scaled) | sign);
#endif
}

// A register of float16 numbers.
QUIRE_INLINE Floats float16_at(const uint8_t* from) {
#if defined(__AVX512F__)
  return from_float16(load<u16x16>(from));
#elif defined(__F16C__)
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(load<Halves>(from))));
#else
  return from_float16_words(__builtin_convertvector(load<Halves>(from), Words));
#endif
}

}  // namespace quire::QUIRE_ISA
