// What a step of a recorded program works on, and what an instruction is.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "native/cpu/memory.h"

namespace quire {

struct KernelTable;

// Number formats of keys and values in the cache.
enum class CacheFormat : int { kFloat32, kBfloat16, kFloat16, kInt8 };

// Keys or values of one layer: [num_blocks, block_size, num_kv_heads, head_dim]. An int8 cache has a scale for each
// vector, scales [num_blocks, block_size, num_kv_heads]: a number is scale * int8.
struct Cache {
  void* data = nullptr;
  float* scales = nullptr;
};

struct LayerCache {
  Cache keys;
  Cache values;
};

// The sequences of a step on one flat axis of T tokens, S sequences, N rows whose logits are wanted.
//
//   flat axis     | s0: 5 tokens of a prompt | s1: 1 | s2: 1 |     query_starts 0 5 6 7
struct StepInputs {
  int64_t num_tokens = 0;
  int64_t num_sequences = 0;
  int64_t num_rows = 0;
  const int32_t* token_ids = nullptr;        // [T]
  const int32_t* positions = nullptr;        // [T]; of each token in its sequence
  const int64_t* slots = nullptr;            // [T]; block * block_size + offset in the cache
  const int64_t* logit_rows = nullptr;       // [N]; rows of the flat axis
  const int64_t* query_starts = nullptr;     // [S + 1]
  const int64_t* context_lengths = nullptr;  // [S]; tokens of each sequence after this step
  const int32_t* block_tables = nullptr;     // row s: the blocks of sequence s
  int64_t block_table_stride = 0;
  const LayerCache* caches = nullptr;  // [layers]
  CacheFormat cache_format = CacheFormat::kFloat32;
  int64_t block_size = 0;
};

// Which axis the rows of a value lie on.
enum class Axis : int { kTokens, kLogitRows };

// Rows of float32 that an instruction writes and others read: [rows of the axis, width], contiguous.
using ValueId = int32_t;

// One thread's memory of its own.
struct Scratch {
  Buffer memory;
  // Which instruction of which run `memory` was prepared for, where an instruction keeps it between its chunks.
  const void* owner = nullptr;
  uint64_t epoch = 0;
};

// A step under way.
struct Run {
  StepInputs inputs;
  const KernelTable* kernels = nullptr;
  float* const* values = nullptr;  // by ValueId
  uint8_t* workspace = nullptr;    // shared by the phases of one instruction
  int num_threads = 1;
  uint64_t epoch = 0;

  float* value(ValueId id) const { return values[id]; }
  int64_t rows(Axis axis) const { return axis == Axis::kTokens ? inputs.num_tokens : inputs.num_rows; }
};

// Part of a program. A phase begins when the one before it is done; its chunks run in any order, on any thread, and
// must not depend on each other or on the number of threads.
class Instruction {
 public:
  virtual ~Instruction() = default;
  virtual int num_phases() const { return 1; }
  virtual int64_t num_chunks(const Run& run, int phase) const = 0;
  virtual void run_chunk(const Run& run, int phase, int64_t chunk, Scratch& scratch) const = 0;
  // Bytes of `Run::workspace` that it needs.
  virtual size_t workspace_bytes(const Run&) const { return 0; }

  std::vector<ValueId> reads;
  std::vector<ValueId> writes;
};

// Chunk `index` of `count` items cut into chunks of `size`.
struct Span {
  int64_t begin;
  int64_t end;
};

inline Span span_of(int64_t index, int64_t size, int64_t count) {
  return {index * size, std::min((index + 1) * size, count)};
}

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace quire
