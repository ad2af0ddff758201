#pragma once

#include <cstdint>

namespace quire {

struct RmsNormKernels {
  // out = x / sqrt(mean(x^2) + epsilon) * weight for one row of `width` numbers; out may be x.
  void (*norm_row)(const float* x, const float* weight, float epsilon, int64_t width, float* out);
};

}  // namespace quire
