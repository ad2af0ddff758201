// Included by each instruction set's translation unit.
#pragma once

#include "paged_attention/cpu/attention_table.h"
#include "paged_attention/cpu/cache_vector.h"

namespace quire::QUIRE_ISA {

// A vector of the cache as floats.
inline void read_cache_vector(CacheFormat format, const Cache& cache, int64_t index, int64_t head_dim, float* out) {
  const uint8_t* place = static_cast<const uint8_t*>(cache.data) + index * head_dim * cache_number_bytes(format);
  const float scale = format == CacheFormat::kInt8 ? cache.scales[index] : 1.0f;
  for (int64_t i = 0; i < head_dim; ++i) {
    if (format == CacheFormat::kFloat32) {
      std::memcpy(&out[i], place + 4 * i, 4);
    } else if (format == CacheFormat::kInt8) {
      out[i] = scale * static_cast<float>(static_cast<int8_t>(place[i]));
    } else {
      uint16_t half;
      std::memcpy(&half, place + 2 * i, 2);
      out[i] = format == CacheFormat::kBfloat16 ? from_bfloat16(half) : from_float16(u16x16{} + half)[0];
    }
  }
}

inline void attend_tile(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                        const LayerCache& cache, const float* query, float* out, Scratch& scratch) {
  const int64_t group_size = task.num_heads / task.num_kv_heads, size = task.head_dim;
  scratch.memory.reserve(static_cast<size_t>(2 * size) * sizeof(float));
  float* vector = scratch.memory.as<float>();
  float* sums = vector + size;
  for (int64_t q = 0; q < tile.num_queries; ++q) {
    const int64_t position = tile.first_position + q;
    const int64_t begin = task.sliding_window > 0 ? std::max<int64_t>(0, position + 1 - task.sliding_window) : 0;
    for (int64_t g = 0; g < group_size; ++g) {
      const int64_t head = tile.kv_head * group_size + g;
      const float* query_vector = query + ((tile.first_row + q) * task.num_heads + head) * size;
      float* place = out + ((tile.first_row + q) * task.num_heads + head) * size;
      float best = -INFINITY, total = 0.0f;
      std::fill(sums, sums + size, 0.0f);
      for (int64_t key = begin; key <= position; ++key) {
        const int64_t block =
            inputs.block_tables[tile.sequence * inputs.block_table_stride + key / inputs.block_size];
        const int64_t index =
            (block * inputs.block_size + key % inputs.block_size) * task.num_kv_heads + tile.kv_head;
        read_cache_vector(inputs.cache_format, cache.keys, index, size, vector);
        float score = 0.0f;
        for (int64_t i = 0; i < size; ++i) score += query_vector[i] * vector[i];
        score *= task.scale;
        if (task.soft_cap > 0.0f) score = task.soft_cap * std::tanh(score / task.soft_cap);
        const float top = std::max(best, score);
        const float old = std::exp(best - top), weight = std::exp(score - top);
        read_cache_vector(inputs.cache_format, cache.values, index, size, vector);
        for (int64_t i = 0; i < size; ++i) sums[i] = sums[i] * old + weight * vector[i];
        total = total * old + weight;
        best = top;
      }
      for (int64_t i = 0; i < size; ++i) place[i] = sums[i] / total;
    }
  }
}

}  // namespace quire::QUIRE_ISA
