// The image kernel of the CPU: u8 images, shifted, weighed and added up in float. Compiled once for each level of the
// instruction set, with FDT_ISA as its name; so nothing here or in the headers that are its parts may be inline and
// shared with other files (the linker would keep one copy, for the wrong machine).
#include "kernel.h"

#include <cstring>

#include "kernel_draw.h"
#include "kernel_lanes.h"
#include "kernel_output.h"
#include "kernel_planes.h"
#include "kernel_sums.h"

namespace fdt {
namespace FDT_ISA {
namespace {

// Sums of more images are made of sums of so many, as float loses too much in a long one: 5,000 images in a row gave
// errors of 3.7e-6 in units of 1/256, over the bound of 2e-6.
constexpr int64_t kLongest = 256;

void sum_tile(const Workspace &space, const Source *sources, int64_t num, int64_t ahead, const Tile &tile) {
  if (num <= kLongest) return sum_images(space, sources, num, ahead, tile);
  float *sums = space.sums(), *totals = space.totals();
  const int64_t size = space.shape.c * space.tile_rows * space.row_floats;
  for (int64_t at = 0; at < num; at += kLongest) {
    const int64_t part = num - at < kLongest ? num - at : kLongest;
    sum_images(space, sources + at, part, num - at - part + ahead, {tile.first, tile.last, nullptr, nullptr, nullptr});
    for (int64_t i = 0; i < size; i++) totals[i] = at ? totals[i] + sums[i] : sums[i];
  }
  std::memcpy(sums, totals, static_cast<size_t>(size) * sizeof(float));
}

void superpose(Workspace &space, const Output &output, const Source *sources, int64_t num, int64_t ahead,
               const Box &box, void *out) {
  const Shape &shape = space.shape;
  const Box *const shown = sources[0].part == Part::kAll ? nullptr : &box;
  if (shown) {
    std::memset(space.boxed(), 0, static_cast<size_t>(space.row_floats));
    std::memset(space.boxed() + box.left, 0xFF, static_cast<size_t>(box.right - box.left));
  }
  // The last pass writes where no value needs another place or form than it has in the sums.
  const bool direct =
      num <= kLongest && !output.half && !output.hwc && output.channels == shape.c && shape.w % kStep == 0;
  if (space.tile_rows < shape.h)
    ahead = 0;  // a few rows of a large image are summed at a time, and the next are its own
  for (int64_t first = 0; first < shape.h; first += space.tile_rows) {
    const int64_t last = first + space.tile_rows < shape.h ? first + space.tile_rows : shape.h;
    sum_tile(space, sources, num, ahead, {first, last, &output, shown, direct ? static_cast<float *>(out) : nullptr});
    if (direct) continue;
    if (output.half)
      write(space, output, first, last, static_cast<uint16_t *>(out));
    else
      write(space, output, first, last, static_cast<float *>(out));
  }
}

}  // namespace

extern const Kernels table;
#define FDT_TEXT_(x) #x
#define FDT_TEXT(x) FDT_TEXT_(x)
const Kernels table = {FDT_TEXT(FDT_ISA), superpose, philox_blocks, draw_classes, take_class, to_planes};

}  // namespace FDT_ISA
}  // namespace fdt
