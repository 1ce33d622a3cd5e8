// Pixels with their channels side by side into planes.
// A part of kernel.cc, for one level of the instruction set; included by it alone.
#ifndef FDT_KERNEL_PLANES_H_
#define FDT_KERNEL_PLANES_H_

#include "kernel_lanes.h"

namespace fdt {
namespace FDT_ISA {
namespace {

template <int c>
void take_apart(const uint8_t *pixels, int64_t begin, int64_t n, uint8_t *planes) {
  for (int64_t i = begin; i < n; i++)
    for (int j = 0; j < c; j++) planes[j * n + i] = pixels[c * i + j];
}

#if defined(__SSE4_1__)
// 16 pixels of 3 channels a time; -> how many were done. The three shuffles of each channel come from the three
// registers that hold 48 bytes; byte 3 i + j of these is channel j of pixel i.
int64_t take_three_apart(const uint8_t *pixels, int64_t n, uint8_t *planes) {
  __m128i pick[3][3];
  for (int channel = 0; channel < 3; channel++)
    for (int part = 0; part < 3; part++) {
      alignas(16) int8_t from[16];
      for (int i = 0; i < 16; i++) {
        const int at = 3 * i + channel - 16 * part;
        from[i] = static_cast<int8_t>(at >= 0 && at < 16 ? at : -1);
      }
      pick[channel][part] = _mm_load_si128(reinterpret_cast<const __m128i *>(from));
    }
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const auto *from = reinterpret_cast<const __m128i *>(pixels + 3 * i);
    const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2);
    for (int channel = 0; channel < 3; channel++) {
      const __m128i *by = pick[channel];
      const __m128i sixteen = _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(a, by[0]), _mm_shuffle_epi8(b, by[1])),
                                           _mm_shuffle_epi8(c, by[2]));
      _mm_storeu_si128(reinterpret_cast<__m128i *>(planes + channel * n + i), sixteen);
    }
  }
  return i;
}
#else
int64_t take_three_apart(const uint8_t *, int64_t, uint8_t *) { return 0; }
#endif

void to_planes(const uint8_t *pixels, const Shape &shape, uint8_t *planes) {
  const int64_t n = shape.plane();
  switch (shape.c) {
    case 1:
      std::memcpy(planes, pixels, static_cast<size_t>(n));
      return;
    case 2:
      return take_apart<2>(pixels, 0, n, planes);
    case 3:
      return take_apart<3>(pixels, take_three_apart(pixels, n, planes), n, planes);
    default:
      return take_apart<4>(pixels, 0, n, planes);
  }
}

}  // namespace
}  // namespace FDT_ISA
}  // namespace fdt

#endif  // FDT_KERNEL_PLANES_H_
