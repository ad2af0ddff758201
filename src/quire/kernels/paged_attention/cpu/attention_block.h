// Blocks of keys and values of the cache, made ready for the micro kernels. Included by each instruction set's
// translation unit.
#pragma once

#include "native/cpu/registers.h"
#include "paged_attention/cpu/attention_table.h"
#include "paged_attention/cpu/cache_vector.h"

namespace quire::QUIRE_ISA {

constexpr int kBlockKeys = 64;
constexpr int64_t kMaxHeadDim = 256;

alignas(64) constexpr uint8_t kZeros[kMaxHeadDim * sizeof(float)] = {};

// Where the vectors of kBlockKeys consecutive positions lie. Only [begin, end) of them are of use to the tile; what
// the cache has in the others' slots is never read: zeros stand for them.
struct KeyBlock {
  int64_t first_position;
  int begin;
  int end;
  const uint8_t* keys[kBlockKeys];
  const uint8_t* values[kBlockKeys];
  alignas(64) float key_scales[kBlockKeys];
  alignas(64) float value_scales[kBlockKeys];
};

// Vectors [begin, end) of a block that lie one after the other in a page of the cache, from vector `index` on.
inline void find_vectors(const AttentionTask& task, CacheFormat format, const LayerCache& cache, int64_t index,
                         int begin, int end, KeyBlock* block) {
  const int64_t vector_bytes = task.head_dim * cache_number_bytes(format);
  const uint8_t* key = static_cast<const uint8_t*>(cache.keys.data) + index * vector_bytes;
  const uint8_t* value = static_cast<const uint8_t*>(cache.values.data) + index * vector_bytes;
  const int64_t stride = task.num_kv_heads * vector_bytes;
  for (int i = begin; i < end; ++i) block->keys[i] = key + (i - begin) * stride;
  for (int i = begin; i < end; ++i) block->values[i] = value + (i - begin) * stride;
  if (format != CacheFormat::kInt8) return;
  for (int i = begin; i < end; ++i) {
    block->key_scales[i] = cache.keys.scales[index + (i - begin) * task.num_kv_heads];
    block->value_scales[i] = cache.values.scales[index + (i - begin) * task.num_kv_heads];
  }
}

inline void find_block(const AttentionTask& task, const AttentionTile& tile, const StepInputs& inputs,
                       const LayerCache& cache, int64_t first_position, KeyBlock* block) {
  const int64_t first_key = task.first_key(tile.first_position), end_key = tile.end_position();
  block->first_position = first_position;
  block->begin = static_cast<int>(std::max<int64_t>(0, first_key - first_position));
  block->end = static_cast<int>(std::min<int64_t>(kBlockKeys, end_key - first_position));
  for (int i = 0; block->end - block->begin < kBlockKeys && i < kBlockKeys; ++i) {
    if (i >= block->begin && i < block->end) continue;
    block->keys[i] = block->values[i] = kZeros;
    block->key_scales[i] = block->value_scales[i] = 0.0f;
  }
  const int32_t* table = inputs.block_tables + tile.sequence * inputs.block_table_stride;
  int64_t page = (first_position + block->begin) / inputs.block_size;
  int64_t offset = (first_position + block->begin) % inputs.block_size;
  for (int i = block->begin; i < block->end; ++page, offset = 0) {
    const int end = static_cast<int>(std::min<int64_t>(block->end, i + inputs.block_size - offset));
    const int64_t slot = table[page] * inputs.block_size + offset;
    find_vectors(task, inputs.cache_format, cache, slot * task.num_kv_heads + tile.kv_head, i, end, block);
    i = end;
  }
}

// Vectors [begin, end) of a block. Into the second cache: in a model they come from far, and the first has few places
// for lines under way.
inline void prefetch_part(const KeyBlock& block, int begin, int end, int64_t vector_bytes) {
  for (int i = begin; i < end; ++i) {
    for (int64_t byte = 0; byte < vector_bytes; byte += static_cast<int64_t>(kCacheLine)) {
      __builtin_prefetch(block.keys[i] + byte, 0, 2);
      __builtin_prefetch(block.values[i] + byte, 0, 2);
    }
  }
}

template <CacheFormat kFormat>
constexpr int kNumberBytes = kFormat == CacheFormat::kFloat32 ? 4 : kFormat == CacheFormat::kInt8 ? 1 : 2;

// So many consecutive numbers of the cache as one register has lanes. An int8 cache's scales are not applied.
template <CacheFormat kFormat>
QUIRE_INLINE Floats load_numbers(const uint8_t* from) {
  if constexpr (kFormat == CacheFormat::kFloat32) {
    return load<Floats>(from);
  } else if constexpr (kFormat == CacheFormat::kInt8) {
    return numbers_at<int8_t>(from);
  } else if constexpr (kFormat == CacheFormat::kFloat16) {
    return float16_at(from);
  } else {
    return reinterpret_cast<Floats>(__builtin_convertvector(load<Halves>(from), Words) << 16);
  }
}

// Number `part` of those that lie in each word.
template <CacheFormat kFormat>
QUIRE_INLINE Floats number_of_words(Words words, int part) {
  if constexpr (kFormat == CacheFormat::kFloat32) {
    return reinterpret_cast<Floats>(words);
  } else if constexpr (kFormat == CacheFormat::kBfloat16) {
    return reinterpret_cast<Floats>(part == 0 ? words << 16 : words & 0xffff0000u);
  } else if constexpr (kFormat == CacheFormat::kFloat16) {
    return from_float16_words(part == 0 ? words : words >> 16);
  } else {
    return __builtin_convertvector(reinterpret_cast<Integers>(words << (24 - 8 * part)) >> 24, Floats);
  }
}

// Words [word, word + lanes) of a vector, zeros behind its end.
QUIRE_INLINE Words load_words(const uint8_t* vector, int64_t word, int64_t num_words) {
  if (num_words >= kRegisterLanes) return load<Words>(vector + 4 * word);
  Words words{};
  std::memcpy(&words, vector, static_cast<size_t>(num_words) * 4);
  return words;
}

constexpr int64_t kWordsAtOnce = kRegisterLanes;

// Where to take the words from `next` on so that kWordsAtOnce lie within the vector, if it has so many.
inline int64_t first_whole_word(int64_t next, int64_t num_words) {
  return std::max<int64_t>(0, std::min(next, num_words - kWordsAtOnce));
}

// words[i]: word `word + i` of each of kRegisterLanes vectors.
QUIRE_INLINE void load_turned(const uint8_t* const* vectors, int64_t word, int64_t num_words,
                              Words (&words)[kRegisterLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kRegisterLanes; ++i) words[i] = load_words(vectors[i], word, num_words);
  transpose(words);
}

// Keys [first_key, first_key + 16) of a block into out [head_dim, kBlockKeys].
template <CacheFormat kFormat>
inline void transpose_keys(const KeyBlock& block, int64_t head_dim, int first_key, float* out) {
  constexpr int kParts = 4 / kNumberBytes<kFormat>;
  const int64_t num_words = head_dim / kParts;
  for (int key = first_key; key < first_key + kLanes; key += kRegisterLanes) {
    for (int64_t next = 0; next < num_words; next += kWordsAtOnce) {
      const int64_t word = first_whole_word(next, num_words);
      Words words[kRegisterLanes];
      load_turned(block.keys + key, word, num_words, words);
      float* place = out + word * kParts * kBlockKeys + key;
#pragma GCC unroll 16
      for (int i = 0; i < kRegisterLanes; ++i) {
        if (i >= num_words) break;
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          store(place + (i * kParts + part) * kBlockKeys, number_of_words<kFormat>(words[i], part));
        }
      }
    }
  }
}

// What is left of a vector behind its whole registers, and zeros up to `width`.
template <CacheFormat kFormat>
inline void copy_last_values(const uint8_t* vector, int64_t whole, int64_t head_dim, int64_t width, float* out) {
  constexpr int kBytes = kNumberBytes<kFormat>;
  std::memset(out + whole, 0, static_cast<size_t>(width - whole) * sizeof(float));
  if (whole == head_dim) return;
  uint8_t numbers[kRegisterLanes * kBytes] = {};
  std::memcpy(numbers, vector + whole * kBytes, static_cast<size_t>((head_dim - whole) * kBytes));
  store(out + whole, load_numbers<kFormat>(numbers));
}

// The values of a block into out [kBlockKeys, width], zeros behind head_dim.
template <CacheFormat kFormat>
inline void copy_values(const KeyBlock& block, int64_t head_dim, int64_t width, float* out) {
  constexpr int kBytes = kNumberBytes<kFormat>;
  const int64_t whole = head_dim / kRegisterLanes * kRegisterLanes;
  for (int key = block.begin; key < block.end; ++key) {
    float* place = out + key * width;
    for (int64_t i = 0; i < whole; i += kRegisterLanes) {
      store(place + i, load_numbers<kFormat>(block.values[key] + i * kBytes));
    }
    if (whole < width) copy_last_values<kFormat>(block.values[key], whole, head_dim, width, place);
  }
}

}  // namespace quire::QUIRE_ISA
