// Random numbers that are named, not drawn in turn: the C++ twin of `kernels/sample/philox.py`.
#pragma once

#include <cstdint>

namespace quire {

// The random number in (0, 1) of that name.
inline double philox_uniform(int64_t seed, int64_t sample_index, int64_t position) {
  const auto low = [](int64_t a) { return static_cast<uint32_t>(a); };
  const auto high = [](int64_t a) { return static_cast<uint32_t>(static_cast<uint64_t>(a) >> 32); };
  uint32_t c[4] = {low(position), high(position), low(sample_index), high(sample_index)};
  uint32_t k[2] = {low(seed), high(seed)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c[0], product1 = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ k[0];
    c[1] = static_cast<uint32_t>(product1);
    c[2] = static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ k[1];
    c[3] = static_cast<uint32_t>(product0);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  // 52 random bits and a half: never 0, never rounded up to 1.
  const uint64_t bits = ((static_cast<uint64_t>(c[0]) << 32) | c[1]) >> 12;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

}  // namespace quire
