// Images into sums: shifted, mirrored, weighed.
//
// How it is laid out, and why (times: one core of an AMD EPYC, 32x32x3, 50 images an output):
// - four images a pass: a sum is loaded and stored once for four products; one at a time took 1.3 times as long.
// - a shift is an address, and a mask of the columns that are inside, which stays in registers as a pass goes down one
//   column of kStep pixels. Masks read anew for every row cost 1.2 times; zero-padded shifted copies 1.5 times.
// - the next images are fetched into the second-level cache (hint 2), a line a row between the sums: from a pool that
//   outgrows the caches 1.4 times as fast as without (in a burst before the sums: no gain; into the first level: half).
// - an image that is mirrored is read from its other end, with the pixels of each step turned around by one shuffle.
// A part of kernel.cc, for one level of the instruction set; included by it alone.
#ifndef FDT_KERNEL_SUMS_H_
#define FDT_KERNEL_SUMS_H_

#include "kernel_lanes.h"

namespace fdt {
namespace FDT_ISA {
namespace {

// One pass: `num` images into one column of kStep sums, of one channel.
struct Pass {
  int64_t first;                  // the row that the tile begins with
  int64_t h, w;                   // of the image
  const uint8_t *const *fetched;  // of each of `num` images the bytes that are fetched meanwhile, or null
  float *sums, *outputs;          // where its rows go: sums for the next pass, or, after the last, standardized outputs
  int64_t sums_row;               // floats from row to row of sums; of outputs it is w
  Floats mean, inv_std;
};

// A row of sums that is complete, or not yet.
template <bool end>
inline void keep(const Pass &pass, int64_t y, Floats sum) {
  if (end)
    store_any(pass.outputs + (y - pass.first) * pass.w, (sum - pass.mean) * pass.inv_std);
  else
    store(pass.sums + (y - pass.first) * pass.sums_row, sum);
}

// edge: some rows are outside of some images. Their pixels are taken from the nearest row, and masked: a branch here
// would be mispredicted every other time, and took 1.4 times as long. turn: some images are mirrored.
template <int num, bool begin, bool turn, bool end, bool edge>
inline void add_rows(const Pass &pass, int64_t first, int64_t last, const uint8_t *const *pixels, const Mask *masks,
                     const Floats *weights, const Source *sources) {
  for (int64_t y = first; y < last; y++) {
    if (pass.fetched && (y & 3) < num) __builtin_prefetch(pass.fetched[y & 3] + (y - pass.first) * kStep, 0, 2);
    Floats sum = begin ? Floats{} : load(pass.sums + (y - pass.first) * pass.sums_row);
    for (int j = 0; j < num; j++) {
      const uint8_t *from = pixels[j] + y * pass.w;
      Mask mask = masks[j];
      if (edge) {
        const int64_t at = y + sources[j].dy, most = pass.h - 1;
        const int64_t nearest = at < 0 ? 0 : at > most ? most : at;
        from += (nearest - at) * pass.w;
        mask = only_if(nearest == at, mask);
      }
      auto bytes = load_bytes(from);
      if (turn) bytes = turned(bytes, sources[j].flip);
      sum = multiply_add(weights[j], to_floats(mask, bytes), sum);
    }
    keep<end>(pass, y, sum);
  }
}

// Rows that are outside of all images of a pass.
template <bool begin, bool end>
inline void add_nothing(const Pass &pass, int64_t first, int64_t last) {
  if (!begin && !end) return;
  for (int64_t y = first; y < last; y++)
    keep<end>(pass, y, begin ? Floats{} : load(pass.sums + (y - pass.first) * pass.sums_row));
}

// Rows first .. last - 1 of a tile, all channels. box: null, or what is inside of it has another source. out: null, or
// where the image begins if these are its last sources.
struct Tile {
  int64_t first, last;
  const Output *output;
  const Box *box;
  float *out;
};

// Adds num images to the tile's sums[c tile_rows row_floats]; `next` are fetched meanwhile. boxed: each image counts for
// its part of the tile, so that above and below the box, and beside it, there are other masks.
template <int num, bool begin, bool turn, bool end, bool boxed = false>
void add_images(const Workspace &space, const Source *given, const Source *next, const Tile &tile) {
  const Shape shape = space.shape;
  const int64_t first = tile.first, last = tile.last;
  Source sources[num];
  Floats weights[num];
  int64_t least = given[0].dy, most = least;
  for (int j = 0; j < num; j++) {
    sources[j] = given[j];
    weights[j] = all(given[j].weight);
    if (given[j].dy < least) least = given[j].dy;
    if (given[j].dy > most) most = given[j].dy;
  }
  // Rows begin_any .. end_any - 1 are inside one of the images or more, inner .. inner_end - 1 inside all of them.
  const auto clamp = [](int64_t y, int64_t low, int64_t high) { return y < low ? low : y > high ? high : y; };
  const int64_t begin_any = clamp(-most, first, last), end_any = clamp(shape.h - least, begin_any, last);
  const int64_t inner = clamp(-least, begin_any, end_any), inner_end = clamp(shape.h - most, inner, end_any);
  const int64_t top = boxed ? clamp(tile.box->top, first, last) : last;
  const int64_t bottom = boxed ? clamp(tile.box->bottom, first, last) : last;
  const uint8_t *pixels[num], *fetched[num];
  Mask masks[num], in_box_rows[num];
  Pass pass{first, shape.h, shape.w, next ? fetched : nullptr, nullptr, nullptr, space.row_floats, {}, {}};
  for (int64_t x = 0; x < shape.w; x += kStep) {
    for (int j = 0; j < num; j++) {
      const bool flip = turn && sources[j].flip;
      const int64_t column = flip ? shape.w - kStep - x : x;
      const auto valid = load_bytes(space.valid(sources[j].dx) + column);
      pixels[j] = sources[j].pixels + sources[j].dy * shape.w + sources[j].dx + column;
      masks[j] = to_mask(turn ? turned(valid, flip) : valid);
      if (boxed) {
        const Mask inside = to_mask(load_bytes(space.boxed() + x));
        const bool is_inside = sources[j].part == Part::kInside;
        in_box_rows[j] = is_inside ? both(masks[j], inside) : without(masks[j], inside);
        masks[j] = only_if(!is_inside, masks[j]);
      }
      if (next) fetched[j] = next[j].pixels + first * shape.w + x * (last - first);
    }
    for (int64_t channel = 0; channel < shape.c; channel++) {
      pass.sums = space.sums() + channel * space.tile_rows * space.row_floats + x;
      if (end) {
        pass.outputs = tile.out + channel * shape.plane() + first * shape.w + x;
        pass.mean = all(tile.output->mean[channel]);
        pass.inv_std = all(tile.output->inv_std[channel]);
      }
      const auto add = [&](int64_t from, int64_t to, const Mask *shown) {
        const auto within = [&](int64_t y) { return boxed ? clamp(y, from, to) : y; };
        add_nothing<begin, end>(pass, from, within(begin_any));
        add_rows<num, begin, turn, end, true>(pass, within(begin_any), within(inner), pixels, shown, weights, sources);
        add_rows<num, begin, turn, end, false>(pass, within(inner), within(inner_end), pixels, shown, weights, sources);
        add_rows<num, begin, turn, end, true>(pass, within(inner_end), within(end_any), pixels, shown, weights, sources);
        add_nothing<begin, end>(pass, within(end_any), to);
      };
      add(first, top, masks);
      if (boxed) {
        add(top, bottom, in_box_rows);
        add(bottom, last, masks);
      }
      for (int j = 0; j < num; j++) {
        pixels[j] += shape.plane();
        if (next) fetched[j] += shape.plane();
      }
    }
  }
}

using AddImages = void (*)(const Workspace &, const Source *, const Source *, const Tile &);

template <int num>
AddImages choose(bool begin, bool turn, bool end) {
  if (end)
    return begin  ? turn ? add_images<num, true, true, true> : add_images<num, true, false, true>
           : turn ? add_images<num, false, true, true>
                  : add_images<num, false, false, true>;
  return begin  ? turn ? add_images<num, true, true, false> : add_images<num, true, false, false>
         : turn ? add_images<num, false, true, false>
                : add_images<num, false, false, false>;
}

AddImages choose_boxed(bool turn, bool end) {
  if (end) return turn ? add_images<2, true, true, true, true> : add_images<2, true, false, true, true>;
  return turn ? add_images<2, true, true, false, true> : add_images<2, true, false, false, true>;
}

// What is to be fetched while sources[at] and on are summed: as many, kDistance further on, if there are so many.
constexpr int64_t kDistance = 6;

// ahead: how many sources there are from sources[num] on.
void sum_images(const Workspace &space, const Source *sources, int64_t num, int64_t ahead, const Tile &tile) {
  for (int64_t at = 0; at < num;) {
    const int64_t left = num - at, group = left < 4 ? left : 4;
    const bool more = at + kDistance + group <= num + ahead;
    const Source *these = sources + at, *next = more ? these + kDistance : nullptr;
    const bool begin = at == 0, end = tile.out && left == group;
    const bool turn = these[group - 1].flip;  // those that are mirrored come last
    const auto pick = group == 1 ? choose<1> : group == 2 ? choose<2> : group == 3 ? choose<3> : choose<4>;
    (tile.box ? choose_boxed(turn, end) : pick(begin, turn, end))(space, these, next, tile);
    at += group;
  }
}

}  // namespace
}  // namespace FDT_ISA
}  // namespace fdt

#endif  // FDT_KERNEL_SUMS_H_
