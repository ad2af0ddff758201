// Vectors of head_dim numbers in the KV cache, in each of its number formats. Included by each instruction set's
// translation unit.
#pragma once

#include <algorithm>

#include "native/cpu/step.h"
#include "native/cpu/vector.h"

namespace quire::QUIRE_ISA {

inline int64_t cache_number_bytes(CacheFormat format) {
  return format == CacheFormat::kFloat32 ? 4 : format == CacheFormat::kInt8 ? 1 : 2;
}

// Writes a vector; `index` is slot * num_kv_heads + head.
inline void write_cache_vector(CacheFormat format, const Cache& cache, int64_t index, const float* from,
                               int64_t head_dim) {
  uint8_t* place = static_cast<uint8_t*>(cache.data) + index * head_dim * cache_number_bytes(format);
  float inverse = 1.0f;
  if (format == CacheFormat::kInt8) {
    float top = 0.0f;
    for (int64_t i = 0; i < head_dim; ++i) top = std::max(top, std::fabs(from[i]));
    cache.scales[index] = top / 127.0f;
    inverse = top > 0.0f ? 127.0f / top : 0.0f;
  }
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, head_dim - i));
    const size_t n = static_cast<size_t>(count);
    const f32x16 part = load_some(from + i, count);
    if (format == CacheFormat::kFloat32) {
      std::memcpy(place + i * 4, &part, n * 4);
    } else if (format == CacheFormat::kInt8) {
      const i8x16 narrow = __builtin_convertvector(round_to_int(part * inverse), i8x16);
      std::memcpy(place + i, &narrow, n);
    } else {
      const u16x16 narrow = format == CacheFormat::kBfloat16 ? to_bfloat16(part) : to_float16(part);
      std::memcpy(place + i * 2, &narrow, n * 2);
    }
  }
}

}  // namespace quire::QUIRE_ISA
