// Registers: so many sums, pixels and masks at a time.
// A part of kernel.cc, for one level of the instruction set; included by it alone.
#ifndef FDT_KERNEL_LANES_H_
#define FDT_KERNEL_LANES_H_

#include <cstring>

#include "kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own AVX-512 header
#endif

namespace fdt {
namespace FDT_ISA {
namespace {

// `kStep` sums at a time, and the pixels that go into them. A mask has 0xFF for pixels that count; the others become 0.
// Bytes become floats by intrinsics, as GCC 12 makes byte by byte code of __builtin_convertvector.
#if defined(__SSE4_1__)
#if defined(__AVX512F__)
using Floats = __m512;
inline Floats multiply_add(Floats a, Floats b, Floats sums) { return _mm512_fmadd_ps(a, b, sums); }
inline __m128i load_bytes(const uint8_t *from) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)); }
inline Floats to_floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
using Mask = __mmask16;
inline Mask to_mask(__m128i valid) { return _mm_movepi8_mask(valid); }
inline Mask only_if(bool inside, Mask mask) { return static_cast<Mask>(mask & -static_cast<int>(inside)); }
inline Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
inline Mask without(Mask a, Mask b) { return static_cast<Mask>(a & ~b); }
inline Floats to_floats(Mask mask, __m128i bytes) {
  return _mm512_cvtepi32_ps(_mm512_maskz_cvtepu8_epi32(mask, bytes));
}
#else
#if defined(__AVX2__)
using Floats = __m256;
inline Floats multiply_add(Floats a, Floats b, Floats sums) { return _mm256_fmadd_ps(a, b, sums); }
inline __m128i load_bytes(const uint8_t *from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)); }
inline Floats to_floats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
#else
using Floats = __m128;
inline Floats multiply_add(Floats a, Floats b, Floats sums) { return a * b + sums; }
inline __m128i load_bytes(const uint8_t *from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return _mm_cvtsi32_si128(four);
}
inline Floats to_floats(__m128i bytes) { return _mm_cvtepi32_ps(_mm_cvtepu8_epi32(bytes)); }
#endif
using Mask = __m128i;
inline Mask to_mask(__m128i valid) { return valid; }
inline Mask only_if(bool inside, Mask mask) { return _mm_and_si128(mask, _mm_set1_epi32(-static_cast<int>(inside))); }
inline Mask both(Mask a, Mask b) { return _mm_and_si128(a, b); }
inline Mask without(Mask a, Mask b) { return _mm_andnot_si128(b, a); }
inline Floats to_floats(Mask mask, __m128i bytes) { return to_floats(_mm_and_si128(mask, bytes)); }
#endif
constexpr int64_t kStep = sizeof(Floats) / sizeof(float);
inline __m128i turned(__m128i bytes, bool around) {
  const __m128i lanes = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm_shuffle_epi8(bytes, _mm_xor_si128(lanes, _mm_set1_epi8(around ? kStep - 1 : 0)));
}
#else
constexpr int64_t kStep = 1;
using Floats = float;
inline Floats multiply_add(Floats a, Floats b, Floats sums) { return a * b + sums; }
inline uint8_t load_bytes(const uint8_t *from) { return *from; }
inline Floats to_floats(uint8_t byte) { return static_cast<float>(byte); }
inline uint8_t turned(uint8_t byte, bool) { return byte; }
using Mask = uint8_t;
inline Mask to_mask(uint8_t valid) { return valid; }
inline Mask only_if(bool inside, Mask mask) { return inside ? mask : Mask{0}; }
inline Mask both(Mask a, Mask b) { return a & b; }
inline Mask without(Mask a, Mask b) { return static_cast<Mask>(a & ~b); }
inline Floats to_floats(Mask mask, uint8_t byte) { return static_cast<float>(mask & byte); }
#endif
inline Floats all(float value) { return value - Floats{}; }  // x - 0 is x, and costs nothing
inline Floats load(const float *from) { return *reinterpret_cast<const Floats *>(from); }
inline void store(float *to, Floats sums) { *reinterpret_cast<Floats *>(to) = sums; }
inline void store_any(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }  // at any address
static_assert(kLanes % kStep == 0, "rows of sums are whole steps");

}  // namespace
}  // namespace FDT_ISA
}  // namespace fdt

#endif  // FDT_KERNEL_LANES_H_
