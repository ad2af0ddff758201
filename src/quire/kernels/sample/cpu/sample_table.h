#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

// How a row is drawn; `kernels/sample/batch.py` says what the limits mean.
struct DrawLimits {
  double temperature;  // 0 takes the most likely token
  int64_t top_k;
  double top_p;
  double min_p;
};

// In the place of a token.
constexpr int64_t kNotFinite = -1;
constexpr int64_t kNoTokenLeft = -2;

struct SampleKernels {
  // The token of a row of logits, or why there is none. `number` in (0, 1) is the row's random number.
  int64_t (*draw_row)(const float* logits, int64_t vocab_size, const DrawLimits& limits, double number,
                      void* workspace);
  // Bytes of `workspace`, which starts on a cache line.
  size_t (*draw_workspace_bytes)(int64_t vocab_size);
  // Sets to -infinity what the bits of `words` do not allow.
  void (*mask_row)(float* logits, int64_t vocab_size, const uint32_t* words);
};

}  // namespace quire
