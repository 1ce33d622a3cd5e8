// The yardstick of the superposition: the products and sums of the same images, and nothing else. Compiled once for each
// level of the instruction set, like csrc/kernel.cc.
#include "kernel.h"
#include "kernel_lanes.h"

namespace fdt {
namespace FDT_ISA {
namespace {

template <int num>
void plain_sums(const uint8_t *const *images, const float *given, int64_t size, float *sums) {
  const uint8_t *pixels[num];
  Floats weights[num];
  for (int j = 0; j < num; j++) {
    pixels[j] = images[j];
    weights[j] = all(given[j]);
  }
  for (int64_t x = 0; x < size; x += kStep) {
    Floats sum = load(sums + x);
    for (int j = 0; j < num; j++) sum = multiply_add(weights[j], to_floats(load_bytes(pixels[j] + x)), sum);
    store(sums + x, sum);
  }
}

}  // namespace

// sums[i] += sum_j weights[j] * images[j][i], four images at a time.
void yardstick(const uint8_t *const *images, const float *weights, int64_t num_images, int64_t size, float *sums) {
  int64_t at = 0;
  for (; at + 4 <= num_images; at += 4) plain_sums<4>(images + at, weights + at, size, sums);
  for (; at < num_images; at++) plain_sums<1>(images + at, weights + at, size, sums);
}

}  // namespace FDT_ISA
}  // namespace fdt
