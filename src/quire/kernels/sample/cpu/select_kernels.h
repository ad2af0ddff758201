// The largest of many numbers, without sorting: included by each instruction set's translation unit.
#pragma once

#include <algorithm>
#include <cfloat>

#include "native/cpu/vector.h"

namespace quire::QUIRE_ISA {

constexpr int kWays = 8;

// Numbers to choose from, each with a mass. The arrays have room for 16 more than `capacity` numbers.
struct Candidates {
  float* values;
  float* masses;
  int64_t count;
};

// The least value of a set that holds all greater ones, and how many of those equal to it belong to the set.
struct Cut {
  float least;
  int64_t num_ties;
};

constexpr uint32_t kAllLanes = (1u << kLanes) - 1;

// The lanes of [i, i + 16) that lie before `end`.
QUIRE_INLINE uint32_t lanes_before(int64_t i, int64_t end) {
  return end - i >= kLanes ? kAllLanes : (1u << (end - i)) - 1;
}

// Takes those of `count` numbers that are not below `bound`, which must be finite; their masses too unless null.
inline void collect(const float* values, const float* masses, int64_t count, float bound, Candidates& candidates) {
  candidates.count = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(count - i, kLanes));
    const f32x16 x = load_some(values + i, lanes);
    const uint32_t bits = mask_bits(is_at_least(x, splat(bound))) & lanes_before(i, count);
    if (bits == 0) continue;
    if (masses != nullptr) store_chosen(candidates.masses + candidates.count, load_some(masses + i, lanes), bits);
    candidates.count += store_chosen(candidates.values + candidates.count, x, bits);
  }
}

inline void fill_masses(Candidates& candidates, float mass) {
  for (int64_t i = 0; i < candidates.count; i += kLanes) store(candidates.masses + i, splat(mass));
}

// Cuts [low, high] into `kWays` parts: thresholds fall and are above `low`, so that the last part is never empty.
inline void choose_thresholds(float low, float high, float* thresholds) {
  const double step = (static_cast<double>(high) - low) / kWays;
  for (int i = 0; i < kWays - 1; ++i) {
    const float threshold = static_cast<float>(high - step * (i + 1));
    thresholds[i] = threshold > low ? threshold : high;
  }
}

// The mass of the candidates that are not below each threshold.
inline void sum_masses(const Candidates& candidates, const float* thresholds, double* masses) {
  constexpr int64_t kBlock = 256;  // short enough for sums in float
  f64x16 totals[kWays - 1]{};
  for (int64_t begin = 0; begin < candidates.count; begin += kBlock) {
    f32x16 sums[kWays - 1]{};
    for (int64_t i = begin; i < std::min(begin + kBlock, candidates.count); i += kLanes) {
      const f32x16 value = load<f32x16>(candidates.values + i), mass = load<f32x16>(candidates.masses + i);
      for (int t = 0; t < kWays - 1; ++t) sums[t] += keep_where(is_at_least(value, splat(thresholds[t])), mass);
    }
    for (int t = 0; t < kWays - 1; ++t) totals[t] += __builtin_convertvector(sums[t], f64x16);
  }
  for (int t = 0; t < kWays - 1; ++t) {
    masses[t] = 0.0;
    for (int lane = 0; lane < kLanes; ++lane) masses[t] += totals[t][lane];
  }
}

// Keeps the candidates of [low, high), in their order.
inline void keep_between(Candidates& candidates, float low, float high) {
  int64_t kept = 0;
  for (int64_t i = 0; i < candidates.count; i += kLanes) {
    const f32x16 values = load<f32x16>(candidates.values + i), masses = load<f32x16>(candidates.masses + i);
    const i32x16 is_between = is_at_least(values, splat(low)) & is_less(values, splat(high));
    const uint32_t bits = mask_bits(is_between) & lanes_before(i, candidates.count);
    if (bits == 0) continue;
    store_chosen(candidates.masses + kept, masses, bits);
    kept += store_chosen(candidates.values + kept, values, bits);
  }
  candidates.count = kept;
}

// The smallest set of finite candidates, largest first, whose mass reaches `limit`: one at least, all if none does.
// Equal values have equal masses. Each round keeps one part of the range of the round before, without its least or its
// greatest value, so there is an end. Uses up the candidates.
inline Cut find_cut(Candidates& candidates, double limit) {
  double above = 0.0;
  while (true) {
    // The last vector is filled up with what changes nothing.
    store(candidates.values + candidates.count, splat(candidates.values[0]));
    store(candidates.masses + candidates.count, f32x16{});
    f32x16 lows = splat(candidates.values[0]), highs = lows;
    for (int64_t i = 0; i < candidates.count; i += kLanes) {
      const f32x16 x = load<f32x16>(candidates.values + i);
      lows = min(x, lows);
      highs = max(x, highs);
    }
    const float low = -largest(-lows), high = largest(highs);
    if (low == high) {
      const double wanted = __builtin_ceil((limit - above) / candidates.masses[0]);
      const bool is_all = !(wanted < static_cast<double>(candidates.count));
      return {low, is_all ? candidates.count : wanted > 1.0 ? static_cast<int64_t>(wanted) : 1};
    }
    float thresholds[kWays - 1];
    double masses[kWays - 1];
    choose_thresholds(low, high, thresholds);
    sum_masses(candidates, thresholds, masses);
    int part = 0;
    while (part < kWays - 1 && above + masses[part] < limit) ++part;
    keep_between(candidates, part < kWays - 1 ? thresholds[part] : low, part > 0 ? thresholds[part - 1] : INFINITY);
    if (part > 0) above += masses[part - 1];
  }
}

}  // namespace quire::QUIRE_ISA
