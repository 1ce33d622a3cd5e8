// The image kernel of the CPU. kernel.cc is compiled once for each level of the instruction set, and the machine's own
// is chosen when the library is loaded, so a library that was built on one machine runs on another.
#ifndef FDT_KERNEL_H_
#define FDT_KERNEL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "mixing.h"

namespace fdt {

constexpr int kMostChannels = 4;
constexpr uint32_t kPhiloxBlocks = 16;  // philox_blocks writes whole groups of so many

// Header code that kernel.cc calls must not be kept out of line: the linker would keep one copy of it, for one machine.
#define FDT_INLINE inline __attribute__((always_inline))

template <typename T>
FDT_INLINE T round_up(T n, T to) {
  return (n + to - 1) / to * to;
}

// Images are kept plane after plane, u8[c h w], so that sums are mirrored and written without taking pixels apart.
struct Shape {
  int64_t h = 0, w = 0, c = 0;
  FDT_INLINE int64_t plane() const { return h * w; }
  FDT_INLINE int64_t size() const { return h * w * c; }
  FDT_INLINE bool operator==(const Shape &other) const { return h == other.h && w == other.w && c == other.c; }
};

// What becomes of the sums: (sum - mean) * inv_std for every channel; one stored channel may be repeated.
struct Output {
  int channels = 3;
  float mean[kMostChannels] = {};
  float inv_std[kMostChannels] = {};
  bool half = false;  // float16 instead of float32
  bool hwc = false;   // instead of chw
};

// Bytes that must be readable before and after every image of a pool: a shifted row begins up to pad pixels before its
// image, and rows are read in steps of kLanes.
constexpr int64_t kLanes = 16;
FDT_INLINE int64_t guard_bytes(int64_t pad) { return pad + 4 * kLanes; }

// Which pixels of the output an image counts for: all, or those outside or inside of a box.
enum class Part : uint8_t { kAll, kOutside, kInside };

// One image of a sum: row y, column x of the crop reads row y + dy, column x + dx, zero outside of it; the output is
// the crop, or its mirror image.
struct Source {
  const uint8_t *pixels;
  int32_t dy, dx;
  float weight;
  bool flip;
  Part part;
};

// Memory that a thread works in; made for one shape and padding.
class Workspace {
 public:
  Workspace(const Shape &shape, int64_t pad);
  Workspace(const Workspace &) = delete;
  const Shape shape;
  const int64_t pad;
  const int64_t row_floats;  // floats of a row of sums, a multiple of kLanes
  const int64_t tile_rows;   // rows of every channel that are summed before they are written
  // Which bytes of a row are in the image, once it is shifted by dx pixels: 0xFF or 0.
  FDT_INLINE const uint8_t *valid(int64_t dx) const { return unshifted_ + dx; }
  FDT_INLINE uint8_t *boxed() { return boxed_.data(); }  // the same of a row of a box: [row_floats]
  FDT_INLINE const uint8_t *boxed() const { return boxed_.data(); }
  FDT_INLINE float *sums() const { return sums_at_; }                                       // [c tile_rows row_floats]
  FDT_INLINE float *totals() const { return sums_at_ + shape.c * tile_rows * row_floats; }  // as many
  FDT_INLINE float *rows() const { return rows_at_; }                                       // a row of every channel

 private:
  std::vector<uint8_t> valid_, boxed_;
  std::vector<float> sums_, rows_;
  const uint8_t *unshifted_;
  float *sums_at_, *rows_at_;
};

// Cumulative numbers of unused images, to find the class of a rank: blocks of `width` classes, and the blocks.
// Both numbers are multiples of kLanes, or there is one block.
struct ClassSums {
  uint32_t width, num_blocks;
  uint32_t *within;  // [num_blocks width], from each block's own beginning
  uint32_t *blocks;  // [num_blocks], padded to kLanes
};

struct Kernels {
  const char *name;
  // out: float or half [channels h w] or [h w channels]. sources: `num` images, 1 or more, those that are mirrored
  // last; after them `ahead` images of later outputs, which are fetched ahead. Where the box has an area there are two,
  // one for what is outside of it and one for what is inside.
  void (*superpose)(Workspace &space, const Output &output, const Source *sources, int64_t num, int64_t ahead,
                    const Box &box, void *out);
  // Words w of the blocks first .. first + n - 1: words[w * stride + i] of block first + i. They come in whole groups
  // of kPhiloxBlocks, and there must be room for that.
  void (*philox_blocks)(uint64_t seed, uint32_t stream, uint32_t epoch, uint32_t index, uint32_t first, uint32_t n,
                        uint32_t stride, uint32_t *words);
  // Classes from `begin` to k - 1 of a plan, each of the image at a random rank among the `unused` ones, whose class is
  // then used: labels, and ranks within the class. random: words 0 at [i], words 1 at [stride + i].
  void (*draw_classes)(const ClassSums &sums, const uint32_t *counts, uint32_t unused, const uint32_t *random,
                       uint32_t stride, uint32_t begin, uint32_t k, uint32_t *labels, uint32_t *ranks);
  // Takes the `count` images of a class off.
  void (*take_class)(const ClassSums &sums, uint32_t label, uint32_t count);
  // u8[h w c] -> u8[c h w]
  void (*to_planes)(const uint8_t *pixels, const Shape &shape, uint8_t *planes);
};

// The machine's own, or what $FDT_PIPELINE_ISA names.
const Kernels &kernels();

}  // namespace fdt

#endif  // FDT_KERNEL_H_
