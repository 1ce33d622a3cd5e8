// How the images of an output are weighed, as definition/mixing.py and superposition.py have it, for the host and, by
// NVRTC, for the GPU.
#ifndef FDT_MIXING_H_
#define FDT_MIXING_H_

#include "philox.h"

#ifdef __CUDACC_RTC__
typedef int int32_t;
#else
#include <cmath>
#endif

namespace fdt {

enum class Kind : uint32_t {
  kSum,     // K images, weights of a series
  kMixUp,   // two, lambda and 1 - lambda
  kCutMix,  // two, a box of the second in the first, their areas
};

constexpr uint32_t kMostBranches = 8;
constexpr uint32_t kQuantileBits = 12;            // of a random word: lambda is one of so many quantiles
constexpr float kLambdaUnit = 1.0f / (1 << 24);  // lambda is a multiple of it, so lambda and 1 - lambda are floats

// Rows top .. bottom - 1, columns left .. right - 1 of an image. No area: there is none.
struct Box {
  int32_t top, left, bottom, right;
  FDT_HD int64_t area() const { return static_cast<int64_t>(bottom - top) * (right - left); }
  FDT_HD bool holds(int32_t y, int32_t x) const { return top <= y && y < bottom && left <= x && x < right; }
};

// (1 - s) target + s / C, of float factors: their product is exact in double, so it may be fused with the addition.
struct Smoothing {
  float kept = 1, share = 0;
  FDT_HD Smoothing() {}
  FDT_HD Smoothing(double s, uint32_t num_classes)
      : kept(static_cast<float>(1 - s)), share(static_cast<float>(s / num_classes)) {}
  FDT_HD float operator()(float target) const {
    return static_cast<float>(static_cast<double>(kept) * target + static_cast<double>(share));
  }
};

namespace {

// One side of a box: its middle is a uniform pixel, `share` of the length lies on either side, what is outside is cut.
FDT_HD inline void draw_side(uint32_t word, double share, int32_t length, int32_t &begin, int32_t &end) {
  const auto middle = static_cast<int32_t>(bounded32(word, static_cast<uint32_t>(length)));
  const auto half = static_cast<int32_t>(share * length);
  begin = middle > half ? middle - half : 0;
  end = middle + half < length ? middle + half : length;
}

// The box of CutMix: words of block 0, lambda in units. A root, and products that are truncated: IEEE has one result.
FDT_HD inline Box draw_box(const uint32_t (&words)[4], uint32_t lambda, int32_t h, int32_t w) {
  const double share = 0.5 * sqrt(1.0 - lambda * static_cast<double>(kLambdaUnit));
  Box box;
  draw_side(words[3], share, h, box.top, box.bottom);
  draw_side(words[1], share, w, box.left, box.right);
  return box;
}

// The weight of what is outside of the box, or inside of it.
FDT_HD inline float area_weight(const Box &box, int32_t h, int32_t w, bool inside) {
  const int64_t area = static_cast<int64_t>(h) * w;
  return static_cast<float>(static_cast<double>(inside ? box.area() : area - box.area()) / static_cast<double>(area));
}

}  // namespace
}  // namespace fdt

#endif  // FDT_MIXING_H_
