// Included by each instruction set's translation unit.
#pragma once

#include "native/cpu/vector.h"

namespace quire::QUIRE_ISA {

QUIRE_INLINE f32x16 silu(f32x16 a) {
  return a / (exp(-a) + 1.0f);
}

inline void silu_mul_row(const float* gate, const float* up, int64_t width, float* out) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const int count = static_cast<int>(width - i < kLanes ? width - i : kLanes);
    store_some(out + i, silu(load_some(gate + i, count)) * load_some(up + i, count), count);
  }
}

}  // namespace quire::QUIRE_ISA
