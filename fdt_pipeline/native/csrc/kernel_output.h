// Sums into outputs: standardized, cast, laid out.
// A part of kernel.cc, for one level of the instruction set; included by it alone.
#ifndef FDT_KERNEL_OUTPUT_H_
#define FDT_KERNEL_OUTPUT_H_

#include "kernel_lanes.h"

namespace fdt {
namespace FDT_ISA {
namespace {

// float -> half, to the nearest, ties to even
uint16_t half_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude >= 0x7F800000) return static_cast<uint16_t>(sign | (magnitude > 0x7F800000 ? 0x7E00 : 0x7C00));
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
  if (magnitude < 0x38800000) {  // below 2^-14: the sum rounds to a multiple of 2^-24
    float rounded;
    std::memcpy(&rounded, &magnitude, sizeof rounded);
    rounded += 0.5f;
    std::memcpy(&bits, &rounded, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13));
}

inline void put(float *to, Floats values) { store_any(to, values); }
inline void put(float *to, float value, int64_t x) { to[x] = value; }
inline void put(uint16_t *to, float value, int64_t x) { to[x] = half_bits(value); }
#if defined(__AVX512F__)
inline void put(uint16_t *to, Floats values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
inline void put(uint16_t *to, Floats values) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline void put(uint16_t *to, Floats values) {
  float each[kStep];
  store_any(each, values);
  for (int64_t x = 0; x < kStep; x++) to[x] = half_bits(each[x]);
}
#endif

// n sums of one channel to standardized values.
template <typename T>
void standardize(const float *sums, int64_t n, float mean, float inv_std, T *to) {
  const Floats means = all(mean), factors = all(inv_std);
  int64_t x = 0;
  for (; x + kStep <= n; x += kStep) put(to + x, (load(sums + x) - means) * factors);
  for (; x < n; x++) put(to, (sums[x] - mean) * inv_std, x);
}

// rows of n channels -> [w n]
template <int n, typename T>
void interleave(const float *rows, int64_t stride, int64_t w, T *to) {
  for (int64_t x = 0; x < w; x++)
    for (int i = 0; i < n; i++) put(to, rows[i * stride + x], n * x + i);
}

template <typename T>
void interleave(const float *rows, int64_t stride, int64_t w, int64_t n, T *to) {
  switch (n) {
    case 1:
      return interleave<1>(rows, stride, w, to);
    case 2:
      return interleave<2>(rows, stride, w, to);
    case 3:
      return interleave<3>(rows, stride, w, to);
    default:
      return interleave<4>(rows, stride, w, to);
  }
}

// Rows first .. last - 1 of the output, [channels h w], from the tile's sums.
template <typename T>
void write_planes(const Workspace &space, const Output &output, int64_t first, int64_t last, T *out) {
  const int64_t w = space.shape.w, h = space.shape.h, stride = space.row_floats;
  for (int64_t i = 0; i < output.channels; i++) {
    const float *sums = space.sums() + (space.shape.c == 1 ? 0 : i) * space.tile_rows * stride;
    T *to = out + (i * h + first) * w;
    if (stride == w)
      standardize(sums, (last - first) * w, output.mean[i], output.inv_std[i], to);
    else
      for (int64_t y = first; y < last; y++, sums += stride, to += w)
        standardize(sums, w, output.mean[i], output.inv_std[i], to);
  }
}

// The same, [h w channels].
template <typename T>
void write_pixels(const Workspace &space, const Output &output, int64_t first, int64_t last, T *out) {
  const int64_t w = space.shape.w, stride = space.row_floats, n = output.channels;
  for (int64_t y = first; y < last; y++) {
    for (int64_t i = 0; i < n; i++) {
      const int64_t channel = space.shape.c == 1 ? 0 : i;
      const float *sums = space.sums() + (channel * space.tile_rows + y - first) * stride;
      standardize(sums, w, output.mean[i], output.inv_std[i], space.rows() + i * stride);
    }
    interleave(space.rows(), stride, w, n, out + y * w * n);
  }
}

template <typename T>
void write(const Workspace &space, const Output &output, int64_t first, int64_t last, T *out) {
  if (output.hwc)
    write_pixels(space, output, first, last, out);
  else
    write_planes(space, output, first, last, out);
}

}  // namespace
}  // namespace FDT_ISA
}  // namespace fdt

#endif  // FDT_KERNEL_OUTPUT_H_
