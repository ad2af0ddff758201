#pragma once

#include <cstdint>

#include "native/cpu/step.h"

namespace quire {

// How queries and keys of a layer are normed and turned.
struct RopeTask {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t rotary_dim;  // the first so many numbers of a head turn: i with i + rotary_dim / 2
  const float* query_norm = nullptr;  // [head_dim], null for no norm
  const float* key_norm = nullptr;
  float epsilon = 0.0f;
};

struct RopeKvWriteKernels {
  // One token: qkv [(num_heads + 2 * num_kv_heads) * head_dim], cosines and sines [rotary_dim / 2]. Writes the turned
  // queries [num_heads * head_dim], and keys and values into slot `slot` of the cache. Changes qkv.
  void (*write_token)(const RopeTask& task, float* qkv, const float* cosines, const float* sines, float* query,
                      CacheFormat format, const LayerCache& cache, int64_t slot);
};

}  // namespace quire
