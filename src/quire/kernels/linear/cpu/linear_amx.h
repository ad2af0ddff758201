// Matrix products with AMX: tile registers hold up to 16 rows of x, a block of a group of the weight, and their
// products. A block as it is unpacked for the other kernels is a tile, and so is a block of bfloat16.
//
//   tiles      0, 1  products of the first 16 rows with two blocks     4  the first 16 rows of x     6, 7  two blocks
//              2, 3  those of the rows behind them                     5  the rows behind them
//
// Products of integers are exact, so few rows may take the vector kernels: their results are the same to the bit.
// Included by linear_kernels.h behind what this needs.
#pragma once

namespace quire::QUIRE_ISA {

constexpr int64_t kMaxVectorRows = 4;  // up to here, vectors cost less than filling a tile
constexpr int64_t kTileRows = 16;
constexpr int kBatch = 4;  // tiles of products that are scaled and added up together

constexpr bool uses_tiles(WeightFormat format, int64_t height) {
  if (format == WeightFormat::kFloat32 || format == WeightFormat::kFloat16) return false;
  return format == WeightFormat::kBfloat16 || height > kMaxVectorRows;
}

// The scales of Q6_K are those of 16 columns, so its blocks are multiplied in halves.
constexpr int tiles_per_block(WeightFormat format) { return format == WeightFormat::kQ6_K ? 2 : 1; }

// The compiler does not know that loading a tile reads memory, nor that of a configuration's 64 bytes all are read.
QUIRE_INLINE void finish_stores() { asm volatile("" ::: "memory"); }

// The shapes of this thread's tiles for rows of x in tiles of that height, while it lives.
class TileShapes {
 public:
  TileShapes(WeightFormat format, int64_t height) : is_used_(uses_tiles(format, height)) {
    if (!is_used_) return;
    const int64_t column_bytes = kBlockColumns * (format == WeightFormat::kBfloat16 ? 2 : 1) / tiles_per_block(format);
    Configuration configuration = {};
    const auto shape = [&](int tile, int64_t rows, int64_t bytes) {
      configuration.rows[tile] = static_cast<uint8_t>(rows);
      configuration.row_bytes[tile] = static_cast<uint16_t>(rows == 0 ? 0 : bytes);
    };
    const int64_t first_rows = std::min(height, kTileRows), second_rows = height - first_rows;
    for (int i = 0; i < 2; ++i) {
      shape(i, first_rows, 64);
      shape(2 + i, second_rows, 64);
      shape(6 + i, column_bytes / 4, 64);
    }
    shape(4, first_rows, column_bytes);
    shape(5, second_rows, column_bytes);
    finish_stores();
    _tile_loadconfig(&configuration);
  }
  ~TileShapes() {
    if (is_used_) _tile_release();
  }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;

 private:
  struct alignas(64) Configuration {
    uint8_t palette = 1;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  bool is_used_;
};

// What a tile of integers begins as: q as bytes of either sign where no minimum is added, as unsigned ones elsewhere.
template <WeightFormat kFormat>
QUIRE_INLINE void unpack_tile(const uint8_t* quants, Quads (&q)[8]) {
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    q[k] = quants_at<kFormat>(quants, k);
    if constexpr (!has_minimum(kFormat)) q[k] -= static_cast<uint8_t>(128 >> zero_shift(kFormat));
  }
}

// A block as tiles, and how it is scaled.
struct UnpackedBlock {
  Quads q[8];
  Scales scales;
};

// Products of `count` tiles of blocks with rows of x: products[i][h] are those of row h with tile i.
template <WeightFormat kFormat>
QUIRE_INLINE void multiply_tiles(const UnpackedBlock* blocks, const QuantisedBlock* x, int64_t height, int count,
                                 i32x16 (*products)[kMaxTileHeight]) {
#define QUIRE_MULTIPLY(c, a, b)              \
  _tile_zero(c);                             \
  if constexpr (has_minimum(kFormat)) {      \
    _tile_dpbsud(c, a, b);                   \
  } else {                                   \
    _tile_dpbssd(c, a, b);                   \
  }
  constexpr int kTiles = tiles_per_block(kFormat);
  const auto rows_of = [&](int i) { return x[i / kTiles * height].q + i % kTiles * kBlockColumns / 2; };
  const auto block_of = [&](int i) { return &blocks[i / kTiles].q[i % kTiles * 4]; };
  const bool has_second_rows = height > kTileRows;
  constexpr int64_t kStride = sizeof(QuantisedBlock);
  finish_stores();
  for (int i = 0; i < count; i += 2) {
    const bool is_pair = i + 1 < count;
    _tile_loadd(6, block_of(i), 64);
    _tile_loadd(4, rows_of(i), kStride);
    QUIRE_MULTIPLY(0, 4, 6);
    if (has_second_rows) {
      _tile_loadd(5, rows_of(i) + kTileRows * kStride, kStride);
      QUIRE_MULTIPLY(2, 5, 6);
    }
    if (is_pair) {
      _tile_loadd(7, block_of(i + 1), 64);
      _tile_loadd(4, rows_of(i + 1), kStride);
      QUIRE_MULTIPLY(1, 4, 7);
      if (has_second_rows) {
        _tile_loadd(5, rows_of(i + 1) + kTileRows * kStride, kStride);
        QUIRE_MULTIPLY(3, 5, 7);
      }
    }
    _tile_stored(0, products[i], 64);
    if (has_second_rows) _tile_stored(2, products[i] + kTileRows, 64);
    if (is_pair) {
      _tile_stored(1, products[i + 1], 64);
      if (has_second_rows) _tile_stored(3, products[i + 1] + kTileRows, 64);
    }
  }
#undef QUIRE_MULTIPLY
}

// Scales the products of some blocks and adds them to the rows' sums, as `add_block` does.
template <WeightFormat kFormat, int kBlocks>
QUIRE_INLINE void add_products(const UnpackedBlock* blocks, const QuantisedBlock* x, int64_t height,
                               const i32x16 (*products)[kMaxTileHeight], f32x16* sums) {
  for (int64_t h = 0; h < height; ++h) {
    f32x16 sum = sums[h];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      const QuantisedBlock& row = x[b * height + h];
      sum = add_dots<kFormat>(blocks[b].scales, row, products[b * tiles_per_block(kFormat)][h], sum);
      if constexpr (kFormat == WeightFormat::kQ6_K) {
        sum = add_second_dots(blocks[b].scales, row, products[2 * b + 1][h], sum);
      }
    }
    sums[h] = sum;
  }
}

// Products of a tile of rows with a group of a quantised segment. In a round of the loop three batches of blocks are
// under way: one is unpacked, the one before multiplied, and that before added up. None of the three waits for another.
template <WeightFormat kFormat>
void multiply_quantised_tiles(const Segment& segment, int64_t group, const uint8_t* tile, int64_t height, f32x16* out) {
  constexpr int kTiles = tiles_per_block(kFormat), kBlocks = kBatch / kTiles;
  const uint8_t* quants = segment.quants_of(group, 0);
  const uint8_t* scales = segment.scales_of(group, 0);
  const uint8_t* supers = segment.supers_of(group, 0);
  const int64_t quant_bytes = segment.quant_bytes(), scale_bytes = traits(kFormat).scale_bytes;
  const int64_t super_bytes = kFormat == WeightFormat::kInt8 ? 0 : traits(kFormat).super_bytes;
  UnpackedBlock blocks[3][kBlocks];
  i32x16 products[2][kBatch][kMaxTileHeight];
  const auto rows_of = [&](int64_t batch) {
    return reinterpret_cast<const QuantisedBlock*>(tile) + batch * kBlocks * height;
  };
  const auto size_of = [&](int64_t batch) {
    return static_cast<int>(std::min<int64_t>(kBlocks, segment.num_blocks - batch * kBlocks));
  };
  for (int64_t h = 0; h < height; ++h) out[h] = f32x16{};
  const int64_t num_batches = (segment.num_blocks + kBlocks - 1) / kBlocks;
  for (int64_t round = 0; round < num_batches + 2; ++round) {
    if (round < num_batches) {
      for (int b = 0; b < size_of(round); ++b) {
        UnpackedBlock& block = blocks[round % 3][b];
        unpack_tile<kFormat>(quants, block.q);
        block.scales = scales_at<kFormat>(scales, supers, 0);
        quants += quant_bytes;
        scales += scale_bytes;
        if ((round * kBlocks + b) % kSuperBlocks == kSuperBlocks - 1) supers += super_bytes;
      }
    }
    if (const int64_t batch = round - 1; batch >= 0 && batch < num_batches) {
      multiply_tiles<kFormat>(blocks[batch % 3], rows_of(batch), height, size_of(batch) * kTiles, products[batch % 2]);
    }
    if (const int64_t batch = round - 2; batch >= 0) {
      const UnpackedBlock* from = blocks[batch % 3];
      const i32x16(*of_tiles)[kMaxTileHeight] = products[batch % 2];
      if (size_of(batch) == kBlocks) {
        add_products<kFormat, kBlocks>(from, rows_of(batch), height, of_tiles, out);
        continue;
      }
      for (int b = 0; b < size_of(batch); ++b) {
        add_products<kFormat, 1>(from + b, rows_of(batch) + b * height, height, of_tiles + b * kTiles, out);
      }
    }
  }
}

// Products of a tile of rows with a group of a segment of bfloat16. Even and odd blocks are added up apart, or each
// product would wait for the one before.
inline void multiply_bfloat16_tiles(const Segment& segment, int64_t group, const uint8_t* tile, int64_t height,
                                    f32x16* out) {
  constexpr int64_t kStride = kBlockColumns * sizeof(uint16_t);
  const auto rows_of = [&](int64_t block) { return tile + block * height * kStride; };
  const bool has_second_rows = height > kTileRows;
  const uint8_t* weight = segment.quants_of(group, 0);
  constexpr int64_t kWeightBytes = kBlockColumns * kGroupRows * sizeof(uint16_t);
  finish_stores();
  _tile_zero(0);
  _tile_zero(1);
  if (has_second_rows) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t block = 0; block < segment.num_blocks; block += 2, weight += 2 * kWeightBytes) {
    const bool is_pair = block + 1 < segment.num_blocks;
    _tile_loadd(6, weight, 64);
    _tile_loadd(4, rows_of(block), kStride);
    _tile_dpbf16ps(0, 4, 6);
    if (has_second_rows) {
      _tile_loadd(5, rows_of(block) + kTileRows * kStride, kStride);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (!is_pair) break;
    _tile_loadd(7, weight + kWeightBytes, 64);
    _tile_loadd(4, rows_of(block + 1), kStride);
    _tile_dpbf16ps(1, 4, 7);
    if (has_second_rows) {
      _tile_loadd(5, rows_of(block + 1) + kTileRows * kStride, kStride);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  f32x16 odd[kMaxTileHeight];
  _tile_stored(0, out, 64);
  _tile_stored(1, odd, 64);
  if (has_second_rows) {
    _tile_stored(2, out + kTileRows, 64);
    _tile_stored(3, odd + kTileRows, 64);
  }
  for (int64_t h = 0; h < height; ++h) out[h] += odd[h];
}

template <WeightFormat kFormat>
QUIRE_INLINE void multiply_with_tiles(const GroupProduct& product, const uint8_t* tile, int64_t height) {
  if constexpr (kFormat == WeightFormat::kBfloat16) {
    multiply_bfloat16_tiles(*product.segment, product.group, tile, height, product.out);
  } else if constexpr (uses_tiles(kFormat, kMaxTileHeight)) {
    multiply_quantised_tiles<kFormat>(*product.segment, product.group, tile, height, product.out);
  }
}

}  // namespace quire::QUIRE_ISA
