// Random words, and the classes that they draw.
// A part of kernel.cc, for one level of the instruction set; included by it alone.
#ifndef FDT_KERNEL_DRAW_H_
#define FDT_KERNEL_DRAW_H_

#include "kernel_lanes.h"
#include "philox.h"

namespace fdt {
namespace FDT_ISA {
namespace {

// The counters and keys of as many blocks as there are lanes, each word in 64 bits: only the lower 32 count.
#if defined(__AVX512F__)
constexpr uint32_t kWords = 8;
typedef uint64_t Wide __attribute__((vector_size(64)));
inline Wide multiply(Wide a, Wide b) {
  return reinterpret_cast<Wide>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
inline void store_low(uint32_t *to, Wide a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtepi64_epi32(reinterpret_cast<__m512i>(a)));
}
#elif defined(__AVX2__)
constexpr uint32_t kWords = 4;
typedef uint64_t Wide __attribute__((vector_size(32)));
inline Wide multiply(Wide a, Wide b) {
  return reinterpret_cast<Wide>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
inline void store_low(uint32_t *to, Wide a) {
  const __m256i lanes = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
  const __m256i low = _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(a), lanes);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(low));
}
#else
constexpr uint32_t kWords = 1;
using Wide = uint64_t;
inline Wide multiply(Wide a, Wide b) { return (a & 0xFFFFFFFF) * b; }
inline void store_low(uint32_t *to, Wide a) { *to = static_cast<uint32_t>(a); }
#endif
static_assert(kPhiloxBlocks % kWords == 0, "blocks come in whole groups");

void philox_blocks(uint64_t seed, uint32_t stream, uint32_t epoch, uint32_t index, uint32_t first, uint32_t n,
                   uint32_t stride, uint32_t *words) {
  const auto wide = [](uint64_t value) { return value - Wide{}; };
  const Wide m0 = wide(0xD2511F53u), m1 = wide(0xCD9E8D57u);
  const uint32_t whole = round_up(n, kPhiloxBlocks);
  for (uint32_t done = 0; done < whole; done += kWords) {
    uint64_t blocks[kWords];
    for (uint32_t i = 0; i < kWords; i++) blocks[i] = first + done + i;
    Wide c0, c1 = wide(index), c2 = wide(epoch), c3 = wide(stream);
    std::memcpy(&c0, blocks, sizeof c0);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const Wide p0 = multiply(c0, m0), p1 = multiply(c2, m1);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c1 = p1;
      c3 = p0;
    }
    uint32_t *to = words + done;
    store_low(to, c0);
    store_low(to + stride, c1);
    store_low(to + 2 * size_t{stride}, c2);
    store_low(to + 3 * size_t{stride}, c3);
  }
}

// How many of kLanes cumulative sums are at or below the rank; and `count` off those that are above it, which are those
// of the class that holds the rank and of all that follow.
inline uint32_t count_below(const uint32_t *sums, uint32_t rank) {
#if defined(__AVX512F__)
  const __m512i limit = _mm512_set1_epi32(static_cast<int>(rank));
  return static_cast<uint32_t>(__builtin_popcount(_mm512_cmple_epu32_mask(_mm512_loadu_si512(sums), limit)));
#elif defined(__SSE4_1__)
  const __m128i limit = _mm_set1_epi32(static_cast<int>(rank));
  uint32_t count = 0;
  for (int i = 0; i < kLanes; i += 4) {
    const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i *>(sums + i));
    const __m128i below = _mm_cmpeq_epi32(_mm_max_epu32(four, limit), limit);
    count += static_cast<uint32_t>(__builtin_popcount(static_cast<unsigned>(_mm_movemask_ps(_mm_castsi128_ps(below)))));
  }
  return count;
#else
  uint32_t count = 0;
  for (int i = 0; i < kLanes; i++) count += sums[i] <= rank;
  return count;
#endif
}

inline void take_above(uint32_t *sums, uint32_t rank, uint32_t count) {
#if defined(__AVX512F__)
  const __m512i limit = _mm512_set1_epi32(static_cast<int>(rank)), all_sums = _mm512_loadu_si512(sums);
  const __mmask16 above = _mm512_cmpgt_epu32_mask(all_sums, limit);
  _mm512_storeu_si512(sums,
                      _mm512_mask_sub_epi32(all_sums, above, all_sums, _mm512_set1_epi32(static_cast<int>(count))));
#else
  for (int i = 0; i < kLanes; i++) sums[i] -= sums[i] > rank ? count : 0;
#endif
}

// num groups of kLanes sums, or n / kLanes of them if num is 0. The rank becomes one within the class that it falls in.
template <int num>
inline uint32_t find(const uint32_t *sums, uint32_t n, uint32_t &rank) {
  uint32_t at = 0;
  if (num)
    for (int i = 0; i < num; i++) at += count_below(sums + i * kLanes, rank);
  else
    for (uint32_t i = 0; i < n; i += kLanes) at += count_below(sums + i, rank);
  rank -= at ? sums[at - 1] : 0;
  return at;
}

template <int num>
inline void take(uint32_t *sums, uint32_t n, uint32_t rank, uint32_t count) {
  if (num)
    for (int i = 0; i < num; i++) take_above(sums + i * kLanes, rank, count);
  else
    for (uint32_t i = 0; i < n; i += kLanes) take_above(sums + i, rank, count);
}

inline uint32_t whole_lanes(uint32_t n) { return round_up(n, static_cast<uint32_t>(kLanes)); }

// All classes in one block of num groups.
template <int num>
void draw_few(const ClassSums &sums, const uint32_t *counts, uint32_t unused, const uint32_t *random, uint32_t stride,
              uint32_t begin, uint32_t k, uint32_t *labels, uint32_t *ranks) {
#if defined(__AVX512F__)
  __m512i left[num];  // stay in registers: from image to image everything waits for these
  for (int j = 0; j < num; j++) left[j] = _mm512_loadu_si512(sums.within + j * kLanes);
#endif
  for (uint32_t i = begin; i < k; i++) {
    const uint32_t rank = bounded64(random[i], random[stride + i], unused);
#if defined(__AVX512F__)
    const __m512i limit = _mm512_set1_epi32(static_cast<int>(rank));
    __mmask16 below[num];
    __m512i before = _mm512_setzero_si512();
    uint32_t label = 0;
    for (int j = 0; j < num; j++) {
      below[j] = _mm512_cmple_epu32_mask(left[j], limit);
      label += static_cast<uint32_t>(__builtin_popcount(below[j]));
      before = _mm512_mask_max_epu32(before, below[j], before, left[j]);
    }
    const uint32_t count = counts[label];
    const __m512i taken = _mm512_set1_epi32(static_cast<int>(count));
    for (int j = 0; j < num; j++)
      left[j] = _mm512_mask_sub_epi32(left[j], static_cast<__mmask16>(~below[j]), left[j], taken);
    const uint32_t rest = rank - _mm512_reduce_max_epu32(before);
#else
    uint32_t rest = rank;
    const uint32_t label = find<num>(sums.within, 0, rest);
    const uint32_t count = counts[label];
    take<num>(sums.within, 0, rank, count);
#endif
    unused -= count;
    labels[i] = label;
    ranks[i] = rest;
  }
}

void draw_many(const ClassSums &sums, const uint32_t *counts, uint32_t unused, const uint32_t *random, uint32_t stride,
               uint32_t begin, uint32_t k, uint32_t *labels, uint32_t *ranks) {
  const uint32_t num_blocks = whole_lanes(sums.num_blocks);
  for (uint32_t i = begin; i < k; i++) {
    const uint32_t rank = bounded64(random[i], random[stride + i], unused);
    uint32_t rest = rank;
    const uint32_t block = find<0>(sums.blocks, num_blocks, rest), within_block = rest;
    uint32_t *within = sums.within + size_t{block} * sums.width;
    const uint32_t label = block * sums.width + find<0>(within, sums.width, rest);
    const uint32_t count = counts[label];
    take<0>(sums.blocks, num_blocks, rank, count);
    take<0>(within, sums.width, within_block, count);
    unused -= count;
    labels[i] = label;
    ranks[i] = rest;
  }
}

void draw_classes(const ClassSums &sums, const uint32_t *counts, uint32_t unused, const uint32_t *random,
                  uint32_t stride, uint32_t begin, uint32_t k, uint32_t *labels, uint32_t *ranks) {
  const uint32_t groups = sums.num_blocks == 1 ? sums.width / kLanes : 0;
  const auto draw = groups == 1             ? draw_few<1>
                    : groups == 2           ? draw_few<2>
                    : groups <= 4 && groups ? draw_few<4>
                    : groups                ? draw_few<8>
                                            : draw_many;
  draw(sums, counts, unused, random, stride, begin, k, labels, ranks);
}

void take_class(const ClassSums &sums, uint32_t label, uint32_t count) {
  const uint32_t block = label / sums.width;
  uint32_t *within = sums.within + size_t{block} * sums.width;
  take<0>(within, sums.width, within[label % sums.width] - 1, count);
  take<0>(sums.blocks, whole_lanes(sums.num_blocks), sums.blocks[block] - 1, count);
}

}  // namespace
}  // namespace FDT_ISA
}  // namespace fdt

#endif  // FDT_KERNEL_DRAW_H_
