// Included by each instruction set's translation unit.
#pragma once

#include "paged_attention/cpu/cache_vector.h"
#include "rms_norm/cpu/rms_norm_kernels.h"
#include "rope_kv_write/cpu/rope_kv_write_table.h"

namespace quire::QUIRE_ISA {

// Turns a head in place.
inline void turn_head(const RopeTask& task, const float* cosines, const float* sines, float* head) {
  const int64_t half = task.rotary_dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, half - i));
    const f32x16 c = load_some(cosines + i, count), s = load_some(sines + i, count);
    const f32x16 x = load_some(head + i, count), y = load_some(head + half + i, count);
    store_some(head + i, x * c - y * s, count);
    store_some(head + half + i, y * c + x * s, count);
  }
}

inline void write_token(const RopeTask& task, float* qkv, const float* cosines, const float* sines, float* query,
                        CacheFormat format, const LayerCache& cache, int64_t slot) {
  const int64_t size = task.head_dim;
  for (int64_t head = 0; head < task.num_heads; ++head) {
    float* turned = query + head * size;
    if (task.query_norm != nullptr) {
      norm_row(qkv + head * size, task.query_norm, task.epsilon, size, turned);
    } else {
      std::memcpy(turned, qkv + head * size, static_cast<size_t>(size) * sizeof(float));
    }
    turn_head(task, cosines, sines, turned);
  }
  for (int64_t head = 0; head < task.num_kv_heads; ++head) {
    float* key = qkv + (task.num_heads + head) * size;
    const float* value = qkv + (task.num_heads + task.num_kv_heads + head) * size;
    if (task.key_norm != nullptr) norm_row(key, task.key_norm, task.epsilon, size, key);
    turn_head(task, cosines, sines, key);
    const int64_t index = slot * task.num_kv_heads + head;
    write_cache_vector(format, cache.keys, index, key, size);
    write_cache_vector(format, cache.values, index, value, size);
  }
}

}  // namespace quire::QUIRE_ISA
