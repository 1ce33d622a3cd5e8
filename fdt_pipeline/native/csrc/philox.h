// Philox4x32-10 (Salmon et al., SC 2011) and bounded integers of its words, as definition/philox.py defines them, for
// the host and, by NVRTC, for the GPU. Counter (block, index, epoch, stream), key = the 64 bits of the seed.
#ifndef FDT_PHILOX_H_
#define FDT_PHILOX_H_

#ifdef __CUDACC_RTC__
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#else
#include <cstdint>
#endif

#ifdef __CUDACC__
#define FDT_HD __host__ __device__
#else
#define FDT_HD
#endif

namespace fdt {
namespace {

// What the numbers are for (fdt_pipeline/definition/philox.py, Stream).
constexpr uint32_t kStreamPlan = 0;
constexpr uint32_t kStreamEpochOrder = 1;

struct Words {
  uint32_t w[4];
};

FDT_HD inline Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Words{{c0, c1, c2, c3}};
}

FDT_HD inline Words random_words(uint64_t seed, uint32_t stream, uint32_t epoch, uint32_t index, uint32_t block) {
  return philox(block, index, epoch, stream, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// floor((high * 2^32 + low) * bound / 2^64), 0 < bound < 2^32
FDT_HD inline uint32_t bounded64(uint32_t high, uint32_t low, uint32_t bound) {
  const uint64_t carry = (static_cast<uint64_t>(low) * bound) >> 32;
  return static_cast<uint32_t>((static_cast<uint64_t>(high) * bound + carry) >> 32);
}

// floor(word * bound / 2^32)
FDT_HD inline uint32_t bounded32(uint32_t word, uint32_t bound) {
  return static_cast<uint32_t>((static_cast<uint64_t>(word) * bound) >> 32);
}

}  // namespace
}  // namespace fdt

#endif  // FDT_PHILOX_H_
