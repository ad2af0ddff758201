// AMX in plain loops: what QUIRE_EMULATE_AMX includes before the kernels of that instruction set, so that they can be
// tested on machines without it. After Intel's description of the instructions.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __AMX_INT8__ 1

namespace quire::emulated_amx {

struct Tile {
  int rows = 0;
  int row_bytes = 0;
  uint8_t data[16][64] = {};
};

inline thread_local Tile tiles[8];

inline void require(bool holds) {
  if (!holds) std::abort();
}

// As the processor does, refuses shapes that it does not have.
inline void configure(const void* from) {
  uint8_t bytes[64];
  std::memcpy(bytes, from, sizeof bytes);
  require(bytes[0] == 1);
  for (int i = 1; i < 16; ++i) require(bytes[i] == 0);
  for (int i = 0; i < 16; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
    const int rows = bytes[48 + i];
    require(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0) && (i < 8 || rows == 0));
    if (i < 8) tiles[i] = {.rows = rows, .row_bytes = row_bytes};
  }
}

inline void release() {
  for (Tile& tile : tiles) tile = {};
}

inline void zero(int tile) {
  require(tiles[tile].rows > 0);
  std::memset(tiles[tile].data, 0, sizeof tiles[tile].data);
}

inline void load(int tile, const void* from, int64_t stride) {
  zero(tile);
  for (int row = 0; row < tiles[tile].rows; ++row) {
    std::memcpy(tiles[tile].data[row], static_cast<const uint8_t*>(from) + row * stride, tiles[tile].row_bytes);
  }
}

inline void store(int tile, void* to, int64_t stride) {
  require(tiles[tile].rows > 0);
  for (int row = 0; row < tiles[tile].rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tiles[tile].data[row], tiles[tile].row_bytes);
  }
}

template <typename T>
T element(const Tile& tile, int row, int index) {
  T value;
  std::memcpy(&value, tile.data[row] + index * sizeof(T), sizeof value);
  return value;
}

inline void require_shapes(const Tile& c, const Tile& a, const Tile& b) {
  require(c.rows > 0 && c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows);
}

template <typename A, typename B>
void multiply_bytes(int to, int left, int right) {
  Tile& c = tiles[to];
  const Tile &a = tiles[left], &b = tiles[right];
  require_shapes(c, a, b);
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      int32_t sum = element<int32_t>(c, m, n);
      for (int k = 0; k < a.row_bytes; ++k) sum += element<A>(a, m, k) * element<B>(b, k / 4, 4 * n + k % 4);
      std::memcpy(c.data[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

inline float float_of(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Even and odd columns are added up apart, and to the old sum at last. Numbers below 2^-126 are not taken for zeros.
inline void multiply_bfloat16(int to, int left, int right) {
  Tile& c = tiles[to];
  const Tile &a = tiles[left], &b = tiles[right];
  require_shapes(c, a, b);
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      float sums[2] = {};
      for (int k = 0; k < a.row_bytes / 2; ++k) {
        sums[k % 2] += float_of(element<uint16_t>(a, m, k)) * float_of(element<uint16_t>(b, k / 2, 2 * n + k % 2));
      }
      const float sum = element<float>(c, m, n) + (sums[0] + sums[1]);
      std::memcpy(c.data[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace quire::emulated_amx

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_loadconfig quire::emulated_amx::configure
#define _tile_release quire::emulated_amx::release
#define _tile_zero quire::emulated_amx::zero
#define _tile_loadd quire::emulated_amx::load
#define _tile_stored quire::emulated_amx::store
#define _tile_dpbssd quire::emulated_amx::multiply_bytes<int8_t, int8_t>
#define _tile_dpbsud quire::emulated_amx::multiply_bytes<int8_t, uint8_t>
#define _tile_dpbf16ps quire::emulated_amx::multiply_bfloat16
