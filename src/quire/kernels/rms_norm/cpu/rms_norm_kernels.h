// Included by each instruction set's translation unit.
#pragma once

#include "native/cpu/registers.h"

namespace quire::QUIRE_ISA {

// 1 / sqrt(mean(x^2) + epsilon) of a row.
inline float inverse_root_mean_square(const float* x, int64_t width, float epsilon) {
  constexpr int kRegisters = kLanes / kRegisterLanes;
  Floats squares[kRegisters] = {};
  const auto add_squares = [&](const float* from) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
      const Floats part = load<Floats>(from + i * kRegisterLanes);
      squares[i] = multiply_add(part, part, squares[i]);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) add_squares(x + i);
  if (i < width) {
    float rest[kLanes] = {};
    std::memcpy(rest, x + i, static_cast<size_t>(width - i) * sizeof(float));
    add_squares(rest);
  }
  return 1.0f / std::sqrt(sum(load<f32x16>(squares)) / static_cast<float>(width) + epsilon);
}

inline void norm_row(const float* x, const float* weight, float epsilon, int64_t width, float* out) {
  const float factor = inverse_root_mean_square(x, width, epsilon);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    store(out + i, load<f32x16>(x + i) * factor * load<f32x16>(weight + i));
  }
  for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

}  // namespace quire::QUIRE_ISA
