// CUDA's words as plain C++, so that superpose.cu compiles with g++: blocks one after the other, threads as fibers.
#ifndef TESTS_CUDA_ON_HOST_H_
#define TESTS_CUDA_ON_HOST_H_

#include <cstdint>
#include <cstring>

#include "fibers.h"

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // all threads of a block run on one host thread
#define FDT_DYNAMIC_SHARED(name) uint32_t *name = emulation::block.memory.get()

struct uint3 {
  unsigned x, y, z;
};
struct ushort4 {
  uint16_t x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};

inline uint3 threadIdx, blockIdx, blockDim;

namespace emulation {

// Threads that wait for each other, and a word of each of them.
struct Meeting {
  unsigned size = 0, round = 0;
  std::vector<Fiber *> waiting;
  const char *what = nullptr;
  uint32_t words[2][32];  // of this round and of the one before, which some may still read
};

struct Block {
  Fibers fibers;
  Meeting all;
  std::vector<Meeting> warps;
  std::unique_ptr<uint32_t[]> memory;
};
inline Block block;

inline void meet(Meeting &meeting, const char *what) {
  if (!meeting.waiting.empty() && std::strcmp(meeting.what, what) != 0)
    fail("threads of a warp are at different operations");
  meeting.what = what;
  meeting.waiting.push_back(block.fibers.current());
  if (meeting.waiting.size() == meeting.size) {
    meeting.round++;
    block.fibers.make_ready(meeting.waiting);
    meeting.waiting.clear();
  }
  block.fibers.pause();
}

// Every lane of the warp gives a word and gets those of all.
inline const uint32_t *exchange(uint32_t mask, uint32_t word, const char *what) {
  Meeting &warp = block.warps[threadIdx.x / 32];
  if (mask != 0xFFFFFFFFu || warp.size != 32) fail("an operation of less than a whole warp");
  uint32_t *words = warp.words[warp.round & 1];
  words[threadIdx.x & 31] = word;
  meet(warp, what);
  return words;
}

struct Grid {
  unsigned x, y;
};

inline void run(Grid grid, unsigned threads, size_t shared_bytes, bool backwards, const std::function<void()> &kernel) {
  blockDim = {threads, 1, 1};
  block.warps.assign((threads + 31) / 32, Meeting{});
  for (unsigned i = 0; i < threads; i++) block.warps[i / 32].size++;
  block.all.size = threads;
  for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
      block.memory.reset(new uint32_t[shared_bytes / 4]);
      std::memset(block.memory.get(), 0xA5, shared_bytes);
      block.fibers.run(threads, backwards, [&](unsigned) { kernel(); }, [](unsigned i) { threadIdx = {i, 0, 0}; });
    }
}

}  // namespace emulation

inline void __syncthreads() { emulation::meet(emulation::block.all, "__syncthreads"); }
inline void __syncwarp() { emulation::exchange(0xFFFFFFFFu, 0, "__syncwarp"); }

inline uint32_t __shfl_sync(uint32_t mask, uint32_t word, uint32_t lane) {
  return emulation::exchange(mask, word, "__shfl_sync")[lane & 31];
}
inline float __shfl_sync(uint32_t mask, float value, uint32_t lane) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  word = __shfl_sync(mask, word, lane);
  std::memcpy(&value, &word, sizeof word);
  return value;
}
inline uint32_t __shfl_up_sync(uint32_t mask, uint32_t word, uint32_t distance) {
  const uint32_t lane = threadIdx.x & 31;
  return emulation::exchange(mask, word, "__shfl_up_sync")[lane < distance ? lane : lane - distance];
}
inline uint32_t __ballot_sync(uint32_t mask, bool bit) {
  const uint32_t *bits = emulation::exchange(mask, bit, "__ballot_sync");
  uint32_t all = 0;
  for (uint32_t i = 0; i < 32; i++) all |= bits[i] << i;
  return all;
}

inline uint32_t __match_any_sync(uint32_t mask, uint32_t word) {
  const uint32_t *words = emulation::exchange(mask, word, "__match_any_sync");
  uint32_t same = 0;
  for (uint32_t i = 0; i < 32; i++) same |= static_cast<uint32_t>(words[i] == word) << i;
  return same;
}

inline uint32_t __ffs(int word) { return static_cast<uint32_t>(__builtin_ffs(word)); }
template <typename T>
T __ldg(const T *from) {
  return *from;
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t bits) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> (bits & 31));
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = (static_cast<uint64_t>(y) << 32) | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++)
    result |= static_cast<uint32_t>((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 0xFF) << (8 * i);
  return result;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float __fmaf_rn(float a, float b, float c) { return a * b + c; }

// float -> half, to the nearest, ties to even
inline uint16_t emulated_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | (magnitude > 0x7F800000 ? 0x7E00 : 0x7C00));
  if (magnitude < 0x38800000) {  // below 2^-14, where halves are multiples of 2^-24: the sum rounds to one
    const float sum = __uint_as_float(magnitude) + 0.5f;
    std::memcpy(&bits, &sum, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13));
}

#endif  // TESTS_CUDA_ON_HOST_H_
