// What the host and the GPU's kernels (superpose.cu) agree on. NVRTC reads this file too, so it includes nothing else.
#ifndef FDT_SUPERPOSE_H_
#define FDT_SUPERPOSE_H_

#include "mixing.h"

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
#endif

namespace fdt {

enum class Targets : uint32_t {
  kSoft,      // f32[num_classes], the weights
  kDominant,  // f32[num_classes], one-hot of the first image's class
  kLabel,     // i64, the first image's class
};

// Neighbouring outputs of an epoch: first, first + 1, .., in all `count`. Where modulo is not 0, they go on with 0
// behind modulo - 1.
struct Span {
  uint32_t epoch, first, count, modulo;
  FDT_HD uint32_t index(uint32_t i) const {
    const uint64_t number = static_cast<uint64_t>(first) + i;
    return static_cast<uint32_t>(modulo ? number % modulo : number);
  }
};

// Which image comes first in a sum: any; or, of the pool's images in an order, or in their own, the one at the output's
// index in the epoch or at its place in the batch.
enum class Leads : uint32_t { kDrawn, kByIndex, kByPlace };

namespace gpu {

constexpr uint32_t kNone = 0xFFFFFFFFu;
constexpr uint32_t kMostSpans = 16;  // of a launch, which has them in its parameters

// A branch (plan.h) and its weights.
struct Mixed {
  uint64_t mixed_end, end;
  Kind kind;
  uint32_t led, unique;
  uint32_t lowest, highest;     // the range of K
  Smoothing smoothing;
  const double *terms, *sums;   // F_i(k) = float(terms[i - 1] / sums[k - 1])
  const float *table;           // or row after row: F_1(1), F_1(2), F_2(2), ...
  const uint32_t *quantiles;    // of lambda
};

// All pointers are the device's. Arrays that are not needed are null.
struct Parameters {
  const uint8_t *pixels;        // u8[n h w c], or null where there is a table
  const uint8_t *const *table;  // [n] where each image is
  const uint32_t *starts;       // [num_classes + 1]: images of class j are by_class[starts[j] .. starts[j + 1] - 1]
  const uint32_t *by_class;     // [n]
  const uint32_t *labels;       // [n], for leaders and where classes may repeat
  const uint32_t *order;        // the images that lead, or null: image i is the i-th
  void *images;                 // f32 or f16 [outputs channels h w] or [outputs h w channels]
  void *targets;                // f32[outputs num_classes] or i64[outputs]
  uint64_t seed;
  Mixed branches[kMostBranches];
  Span spans[kMostSpans];  // of equal counts
  uint32_t first_place;    // of the launch's outputs in the batch
  Leads leads;
  uint32_t highest;  // the most images of an output
  uint32_t num_classes;
  int32_t pad, h, w;
  uint32_t flip, half, hwc;
  Targets target_kind;
  float mean[4], inv_std[4];
};

// A thread sums so many neighbouring pixels of a row; so many threads sum a tile of an image, and one warp draws plans.
constexpr int32_t kUnitPixels = 4;
constexpr int32_t kGatherThreads = 256;
constexpr int32_t kDrawThreads = 32;

// Bytes on their way to the device as a kernel's parameter: with the rest of the parameters below the limit of 4 kB.
constexpr uint32_t kChunkWords = 896;
struct Chunk {
  uint32_t words[kChunkWords];
};

// Words of shared memory that drawing needs: for every 32 classes how many images are unused, and which classes are
// used.
FDT_HD inline uint32_t drawing_words(uint32_t num_classes) {
  return num_classes <= 32 ? 0 : 2 * ((num_classes + 31) / 32);
}

// Sums of so many images are set aside, and the next begin at zero: of 5,000 in one go, roundings add up to 4e-6.
constexpr uint32_t kSetAside = 256;

// Words of shared memory for what is set aside: of every thread of a block, where plans may be as long as that.
FDT_HD inline uint32_t set_aside_words(uint32_t highest, uint32_t c) {
  return highest < kSetAside ? 0 : kGatherThreads * kUnitPixels * c;
}

}  // namespace gpu
}  // namespace fdt

#endif  // FDT_SUPERPOSE_H_
