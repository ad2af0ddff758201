#pragma once

#include <cstdint>

namespace quire {

struct SiluMulKernels {
  // out[i] = silu(gate[i]) * up[i] for `width` numbers.
  void (*silu_mul_row)(const float* gate, const float* up, int64_t width, float* out);
};

}  // namespace quire
