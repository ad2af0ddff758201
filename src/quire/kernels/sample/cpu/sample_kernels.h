// Draws the token of one row: included by each instruction set's translation unit.
//
//   logits -- largest of each chunk --> greedy: first token that equals the largest
//      |            '--> top_k: a cut, found among the few logits above a bound
//      '-- weights of the tokens above the cut, their sum by chunk --> chunk of the random number --> token in it
//               '--> top_p: a cut as before; weights below it become 0
#pragma once

#include "native/cpu/step.h"
#include "sample/cpu/sample_table.h"
#include "sample/cpu/select_kernels.h"

namespace quire::QUIRE_ISA {

constexpr int64_t kChunk = 256;
constexpr double kTopPRounding = 1.0 - 1e-6;  // TOP_P_ROUNDING of batch.py
constexpr double kBelowOne = 1.0 - 0x1p-53;

// A row, what has been found out about it, and its workspace.
struct Row {
  const float* logits;
  int64_t vocab_size;
  float peak;
  float* chunk_peaks;
  float* weights;  // in whole vectors
  double* chunk_sums;
  Candidates candidates;

  int64_t num_chunks() const { return divide_up(vocab_size, kChunk); }
  Span chunk(int64_t index) const { return span_of(index, kChunk, vocab_size); }
};

// 16 logits from index i on; those from `end` on are -infinity.
QUIRE_INLINE f32x16 logits_at(const Row& row, int64_t i, int64_t end) {
  if (end - i >= kLanes) return load<f32x16>(row.logits + i);
  const f32x16 x = load_some(row.logits + i, static_cast<int>(end - i));
  return select(mask_of(lanes_before(i, end)), x, splat(-INFINITY));
}

// Finds the largest logit of each chunk and of the row. Returns whether all are numbers below infinity.
inline bool find_peaks(Row& row) {
  i32x16 is_fine = splat(int32_t{-1});
  row.peak = -INFINITY;
  for (int64_t c = 0; c < row.num_chunks(); ++c) {
    const Span chunk = row.chunk(c);
    f32x16 peaks = splat(-INFINITY);
    for (int64_t i = chunk.begin; i < chunk.end; i += kLanes) {
      const f32x16 x = logits_at(row, i, chunk.end);
      is_fine &= is_less(x, splat(INFINITY));
      peaks = max(x, peaks);
    }
    row.chunk_peaks[c] = largest(peaks);
    row.peak = row.chunk_peaks[c] > row.peak ? row.chunk_peaks[c] : row.peak;
  }
  return mask_bits(is_fine) == kAllLanes;
}

// The first token whose logit is the peak.
inline int64_t first_at_peak(const Row& row) {
  int64_t c = 0;
  while (row.chunk_peaks[c] < row.peak) ++c;
  int64_t token = row.chunk(c).begin;
  while (row.logits[token] < row.peak) ++token;
  return token;
}

// Fills in the weights, which are probabilities relative to that of the most likely token: 0 below min_p, and for
// logits below `least`.
inline void weigh(Row& row, const DrawLimits& limits, float least) {
  const float inverse_temperature = static_cast<float>(std::min<double>(1.0 / limits.temperature, FLT_MAX));
  const f32x16 min_p = splat(static_cast<float>(limits.min_p));
  for (int64_t i = 0; i < row.vocab_size; i += kLanes) {
    const f32x16 x = logits_at(row, i, row.vocab_size);
    const i32x16 is_kept = is_at_least(x, splat(least));
    f32x16 weights{};
    if (mask_bits(is_kept) != 0) {
      weights = exp((x - row.peak) * inverse_temperature);
      weights = keep_where(is_kept & is_at_least(weights, min_p), weights);
    }
    store(row.weights + i, weights);
  }
}

// Adds up the weights of each chunk. Returns their sum.
inline double sum_chunks(Row& row) {
  double total = 0.0;
  for (int64_t c = 0; c < row.num_chunks(); ++c) {
    const Span chunk = row.chunk(c);
    f32x16 sums{};
    for (int64_t i = chunk.begin; i < chunk.end; i += kLanes) sums += load<f32x16>(row.weights + i);
    row.chunk_sums[c] = sum(sums);
    total += row.chunk_sums[c];
  }
  return total;
}

// The top_k-th largest logit; -FLT_MAX if there are fewer finite ones. At least so many logits are not below the
// top_k-th largest peak of a chunk.
inline float find_top_k(Row& row, int64_t top_k) {
  Candidates& candidates = row.candidates;
  const double wanted = static_cast<double>(top_k);
  float bound = -FLT_MAX;
  if (top_k <= row.num_chunks()) {
    collect(row.chunk_peaks, nullptr, row.num_chunks(), bound, candidates);
    fill_masses(candidates, 1.0f);
    if (candidates.count >= top_k) bound = find_cut(candidates, wanted).least;
  }
  collect(row.logits, nullptr, row.vocab_size, bound, candidates);
  fill_masses(candidates, 1.0f);
  return candidates.count <= top_k ? bound : find_cut(candidates, wanted).least;
}

// Takes from `kept` the lanes of `ties` once `ties_left` of them have been counted.
inline uint32_t drop_late_ties(uint32_t kept, uint32_t ties, int64_t& ties_left) {
  for (; ties != 0; ties &= ties - 1) {
    if (--ties_left < 0) kept &= ~(ties & -ties);
  }
  return kept;
}

// Drops what does not belong to the smallest set of tokens that holds top_p of `total`, the sum of all weights. Tokens
// so unlikely that all of them together could not hold half of the rest are not looked at.
inline void keep_top_p(Row& row, const DrawLimits& limits, double total) {
  const double unlikely = 0.5 * (1.0 - limits.top_p) * total / static_cast<double>(row.vocab_size);
  const double bound = row.peak + limits.temperature * __builtin_log(unlikely);
  collect(row.logits, row.weights, row.vocab_size,
          static_cast<float>(std::clamp<double>(bound, -FLT_MAX, row.peak)), row.candidates);
  const Cut cut = find_cut(row.candidates, limits.top_p * kTopPRounding * total);
  int64_t ties_left = cut.num_ties;
  for (int64_t i = 0; i < row.vocab_size; i += kLanes) {
    const f32x16 x = logits_at(row, i, row.vocab_size);
    i32x16 is_kept = is_at_least(x, splat(cut.least));
    if (const uint32_t ties = mask_bits(is_equal(x, splat(cut.least)))) {
      is_kept = mask_of(drop_late_ties(mask_bits(is_kept), ties, ties_left));
    }
    store(row.weights + i, keep_where(is_kept, load<f32x16>(row.weights + i)));
  }
}

// Inverts the cumulative distribution at `number`: first over chunks, then inside one.
inline int64_t draw_in_order(const Row& row, double total, double number) {
  const double target = number * total;
  double before = 0.0;
  int64_t c = 0;
  while (c < row.num_chunks() - 1 && before + row.chunk_sums[c] <= target) before += row.chunk_sums[c++];
  const Span chunk = row.chunk(c);
  double inside = 0.0;
  for (int64_t i = chunk.begin; i < chunk.end; ++i) inside += row.weights[i];
  // Rounding may not carry the rest out of its chunk.
  const double rest = std::min((target - before) / row.chunk_sums[c], kBelowOne) * inside;
  int64_t token = chunk.begin;
  for (double reached = row.weights[token]; reached <= rest; reached += row.weights[token]) ++token;
  return token;
}

// Numbers of the workspace, each array on a cache line of its own.
struct Layout {
  explicit Layout(int64_t vocab_size)
      : candidates(divide_up(vocab_size, kChunk) * kChunk + kLanes),
        chunks(divide_up(divide_up(vocab_size, kChunk), kLanes) * kLanes) {}
  int64_t candidates;
  int64_t chunks;
  size_t num_bytes() const {
    return static_cast<size_t>(candidates * 3 + chunks) * sizeof(float) + static_cast<size_t>(chunks) * sizeof(double);
  }
};

inline size_t draw_workspace_bytes(int64_t vocab_size) {
  return Layout(vocab_size).num_bytes();
}

inline void place(Row& row, void* workspace) {
  const Layout layout(row.vocab_size);
  row.chunk_sums = static_cast<double*>(workspace);
  row.candidates.values = reinterpret_cast<float*>(row.chunk_sums + layout.chunks);
  row.candidates.masses = row.candidates.values + layout.candidates;
  row.weights = row.candidates.masses + layout.candidates;
  row.chunk_peaks = row.weights + layout.candidates;
}

inline int64_t draw_row(const float* logits, int64_t vocab_size, const DrawLimits& limits, double number,
                        void* workspace) {
  Row row{};
  row.logits = logits;
  row.vocab_size = vocab_size;
  place(row, workspace);
  if (!find_peaks(row)) return kNotFinite;
  if (row.peak == -INFINITY) return kNoTokenLeft;
  if (!(limits.temperature > 0.0)) return first_at_peak(row);
  const bool is_cut = limits.top_k > 0 && limits.top_k < vocab_size;
  weigh(row, limits, is_cut ? find_top_k(row, limits.top_k) : -FLT_MAX);
  double total = sum_chunks(row);
  if (limits.top_p < 1.0) {
    keep_top_p(row, limits, total);
    total = sum_chunks(row);
  }
  return draw_in_order(row, total, number);
}

inline void mask_row(float* logits, int64_t vocab_size, const uint32_t* words) {
  for (int64_t i = 0; i < vocab_size; i += kLanes) {
    const uint32_t allowed = words[i / 32] >> (i % 32) & kAllLanes;
    if (allowed == kAllLanes) continue;
    const int count = static_cast<int>(std::min<int64_t>(vocab_size - i, kLanes));
    const f32x16 x = load_some(logits + i, count);
    store_some(logits + i, select(mask_of(allowed), x, splat(-INFINITY)), count);
  }
}

}  // namespace quire::QUIRE_ISA
