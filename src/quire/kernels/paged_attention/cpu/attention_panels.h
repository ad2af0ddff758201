// The micro kernels of attention: a few rows times some registers of columns, sums in registers. Included by each
// instruction set's translation unit.
//
// Each number is one chain of products in the order of head dims (scores) or keys (sums of values), whatever the
// rows and columns beside it: the shape of a panel changes no bit.
#pragma once

#include "paged_attention/cpu/attention_block.h"

namespace quire::QUIRE_ISA {

constexpr int kMaxPanelRows = 6;
#if defined(__AVX512F__)
constexpr int kPanelRegisters = 4;
#else
constexpr int kPanelRegisters = 2;
#endif

// scores [kRows, kBlockKeys] of the keys in these columns: query [kRows, head_dim], keys [head_dim, kBlockKeys].
template <int kRows, int kColumns>
inline void score_panel(const float* query, int64_t head_dim, const float* keys, float* scores) {
  Floats sums[kRows][kColumns] = {};
  for (int64_t i = 0; i < head_dim; ++i) {
    Floats key[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      key[c] = load<Floats>(keys + i * kBlockKeys + c * kRegisterLanes);
      keep(key[c]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Floats number = broadcast(query[r * head_dim + i]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) add_product(sums[r][c], number, key[c]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) store(scores + r * kBlockKeys + c * kRegisterLanes, sums[r][c]);
  }
}

// The same from the keys as they lie in the cache, kRegisterLanes of them, for so few rows that turning them round in
// memory first would not pay.
template <CacheFormat kFormat, int kRows>
inline void score_cached_keys(const float* query, int64_t head_dim, const uint8_t* const* keys, float* scores) {
  constexpr int kParts = 4 / kNumberBytes<kFormat>;
  const int64_t num_words = head_dim / kParts;
  Floats sums[kRows] = {};
  for (int64_t next = 0; next < num_words; next += kRegisterLanes) {
    const int64_t word = first_whole_word(next, num_words);
    Words words[kRegisterLanes];
    load_turned(keys, word, num_words, words);
    const int first = static_cast<int>(next - word), end = static_cast<int>(std::min(num_words - word, kWordsAtOnce));
    const float* numbers = query + word * kParts;
#pragma GCC unroll 16
    for (int i = 0; i < kRegisterLanes; ++i) {
      if (i < first || i >= end) continue;
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        Floats key = number_of_words<kFormat>(words[i], part);
        keep(key);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          add_product(sums[r], broadcast(numbers[r * head_dim + i * kParts + part]), key);
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) store(scores + r * kBlockKeys, sums[r]);
}

struct ValueRows {
  const uint8_t* const* rows;  // [kBlockKeys]
  int begin;
  int end;
};

// sums [kRows, width] = sums * old + weights * values in these columns: weights [kRows, kBlockKeys], old [kRows].
template <CacheFormat kFormat, int kRows, int kColumns>
inline void value_panel(const float* weights, const ValueRows& values, int64_t column, const float* old, float* sums,
                        int64_t width) {
  Floats panel[kRows][kColumns];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      panel[r][c] = load<Floats>(sums + r * width + column + c * kRegisterLanes) * old[r];
    }
  }
  for (int key = values.begin; key < values.end; ++key) {
    const uint8_t* row = values.rows[key] + column * kNumberBytes<kFormat>;
    Floats value[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      value[c] = load_numbers<kFormat>(row + c * kRegisterLanes * kNumberBytes<kFormat>);
      keep(value[c]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Floats weight = broadcast(weights[r * kBlockKeys + key]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) add_product(panel[r][c], weight, value[c]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) store(sums + r * width + column + c * kRegisterLanes, panel[r][c]);
  }
}

// Panels by their rows, of one register of columns and of kPanelRegisters.
struct RowPanels {
  using Score = void (*)(const float* query, int64_t head_dim, const float* keys, float* scores);
  using Value = void (*)(const float* weights, const ValueRows& values, int64_t column, const float* old, float* sums,
                         int64_t width);
  using CachedScore = void (*)(const float* query, int64_t head_dim, const uint8_t* const* keys, float* scores);
  CachedScore cached_score;
  Score narrow_score;
  Score wide_score;
  Value narrow_value;
  Value wide_value;
};

template <CacheFormat kFormat, int kRows>
constexpr RowPanels kRowPanels = {score_cached_keys<kFormat, kRows>, score_panel<kRows, 1>,
                                  score_panel<kRows, kPanelRegisters>,
                                  value_panel<kFormat, kRows, 1>, value_panel<kFormat, kRows, kPanelRegisters>};

template <CacheFormat kFormat>
constexpr RowPanels kPanels[kMaxPanelRows] = {kRowPanels<kFormat, 1>, kRowPanels<kFormat, 2>, kRowPanels<kFormat, 3>,
                                              kRowPanels<kFormat, 4>, kRowPanels<kFormat, 5>, kRowPanels<kFormat, 6>};

}  // namespace quire::QUIRE_ISA
