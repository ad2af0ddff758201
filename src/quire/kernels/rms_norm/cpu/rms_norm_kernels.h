// Included by each instruction set's translation unit.
#pragma once

#include "native/cpu/vector.h"

namespace quire::QUIRE_ISA {

// 1 / sqrt(mean(x^2) + epsilon) of a row.
inline float inverse_root_mean_square(const float* x, int64_t width, float epsilon) {
  f32x16 squares{};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const f32x16 part = load<f32x16>(x + i);
    squares = fma(part, part, squares);
  }
  if (i < width) {
    const f32x16 part = load_some(x + i, static_cast<int>(width - i));
    squares = fma(part, part, squares);
  }
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + epsilon);
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
