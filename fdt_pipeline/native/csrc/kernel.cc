// The sums themselves: u8 images, shifted, weighed and added up in float. Compiled once for each level of the
// instruction set, with FDT_ISA as its name; so nothing here may be inline and shared with other files (the linker
// would keep one copy, for the wrong machine).
//
// How it is laid out, and why (times: one core of an AMD EPYC, 32x32x3, 50 images an output):
// - four images a pass: a sum is loaded and stored once for four products; one at a time took 1.3 times as long.
// - a shift is an address, and a mask of the columns that are inside, which stays in registers as a pass goes down one
//   column of kStep pixels. Masks read anew for every row cost 1.2 times; zero-padded shifted copies 1.5 times.
// - the next images are fetched into the second-level cache (hint 2), a line a row between the sums: from a pool in
// memory
//   1.4 times as fast as without (all lines in a burst before the sums: no gain; into the first level: half of it).
// - an image that is mirrored is read from its other end, with the pixels of each step turned around by one shuffle.
#include "kernel.h"

#include <cstring>

#include "philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own AVX-512 header
#endif

#ifndef FDT_ISA
#define FDT_ISA generic
#endif

namespace fdt {
namespace FDT_ISA {
namespace {

// `kStep` sums at a time, and the pixels that go into them: those with `valid` 0xFF; 0 where it is 0. Written out, as
// GCC 12 makes byte by byte code of __builtin_convertvector where the bytes are not aligned.
#if defined(__AVX512F__)
constexpr int64_t kStep = 16;
using Floats = __m512;
inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats all(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float *from) { return _mm512_load_ps(from); }
inline void store(float *to, Floats sums) { _mm512_store_ps(to, sums); }
inline Floats multiply_add(Floats a, Floats b, Floats sums) { return _mm512_fmadd_ps(a, b, sums); }
inline Floats load_any(const float *from) { return _mm512_loadu_ps(from); }
inline void store_any(float *to, Floats values) { _mm512_storeu_ps(to, values); }
inline __m128i load_bytes(const uint8_t *from) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)); }
inline Floats to_floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
inline __m128i turned(__m128i bytes, bool around) {
  const __m128i lanes = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm_shuffle_epi8(bytes, _mm_xor_si128(lanes, _mm_set1_epi8(around ? 15 : 0)));
}
using Mask = __mmask16;
inline Mask to_mask(__m128i valid) { return _mm_movepi8_mask(valid); }
inline Mask only_if(bool inside, Mask mask) { return static_cast<Mask>(mask & -static_cast<int>(inside)); }
inline Floats to_floats(Mask mask, __m128i bytes) {
  return _mm512_cvtepi32_ps(_mm512_maskz_cvtepu8_epi32(mask, bytes));
}
#elif defined(__AVX2__)
constexpr int64_t kStep = 8;
using Floats = __m256;
inline Floats zeros() { return _mm256_setzero_ps(); }
inline Floats all(float value) { return _mm256_set1_ps(value); }
inline Floats load(const float *from) { return _mm256_load_ps(from); }
inline void store(float *to, Floats sums) { _mm256_store_ps(to, sums); }
inline Floats multiply_add(Floats a, Floats b, Floats sums) { return _mm256_fmadd_ps(a, b, sums); }
inline Floats load_any(const float *from) { return _mm256_loadu_ps(from); }
inline void store_any(float *to, Floats values) { _mm256_storeu_ps(to, values); }
inline __m128i load_bytes(const uint8_t *from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)); }
inline Floats to_floats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
inline __m128i turned(__m128i bytes, bool around) {
  const __m128i lanes = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm_shuffle_epi8(bytes, _mm_xor_si128(lanes, _mm_set1_epi8(around ? 7 : 0)));
}
using Mask = __m128i;
inline Mask to_mask(__m128i valid) { return valid; }
inline Mask only_if(bool inside, Mask mask) { return _mm_and_si128(mask, _mm_set1_epi32(-static_cast<int>(inside))); }
inline Floats to_floats(Mask mask, __m128i bytes) { return to_floats(_mm_and_si128(mask, bytes)); }
#elif defined(__SSE4_1__)
constexpr int64_t kStep = 4;
using Floats = __m128;
inline Floats zeros() { return _mm_setzero_ps(); }
inline Floats all(float value) { return _mm_set1_ps(value); }
inline Floats load(const float *from) { return _mm_load_ps(from); }
inline void store(float *to, Floats sums) { _mm_store_ps(to, sums); }
inline Floats multiply_add(Floats a, Floats b, Floats sums) { return _mm_add_ps(_mm_mul_ps(a, b), sums); }
inline Floats load_any(const float *from) { return _mm_loadu_ps(from); }
inline void store_any(float *to, Floats values) { _mm_storeu_ps(to, values); }
inline __m128i load_bytes(const uint8_t *from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return _mm_cvtsi32_si128(four);
}
inline Floats to_floats(__m128i bytes) { return _mm_cvtepi32_ps(_mm_cvtepu8_epi32(bytes)); }
inline __m128i turned(__m128i bytes, bool around) {
  const __m128i lanes = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm_shuffle_epi8(bytes, _mm_xor_si128(lanes, _mm_set1_epi8(around ? 3 : 0)));
}
using Mask = __m128i;
inline Mask to_mask(__m128i valid) { return valid; }
inline Mask only_if(bool inside, Mask mask) { return _mm_and_si128(mask, _mm_set1_epi32(-static_cast<int>(inside))); }
inline Floats to_floats(Mask mask, __m128i bytes) { return to_floats(_mm_and_si128(mask, bytes)); }
#else
constexpr int64_t kStep = 1;
using Floats = float;
inline Floats zeros() { return 0; }
inline Floats all(float value) { return value; }
inline Floats load(const float *from) { return *from; }
inline void store(float *to, Floats sums) { *to = sums; }
inline Floats multiply_add(Floats a, Floats b, Floats sums) { return a * b + sums; }
inline Floats load_any(const float *from) { return *from; }
inline void store_any(float *to, Floats values) { *to = values; }
inline uint8_t load_bytes(const uint8_t *from) { return *from; }
inline Floats to_floats(uint8_t byte) { return static_cast<float>(byte); }
inline uint8_t turned(uint8_t byte, bool) { return byte; }
using Mask = uint8_t;
inline Mask to_mask(uint8_t valid) { return valid; }
inline Mask only_if(bool inside, Mask mask) { return inside ? mask : Mask{0}; }
inline Floats to_floats(Mask mask, uint8_t byte) { return static_cast<float>(mask & byte); }
#endif
static_assert(kLanes % kStep == 0, "rows of sums are whole steps");

// Where the rows of a pass go: sums, kept for the next pass, or, after the last, standardized float32 outputs.
struct Target {
  float *first;  // of the row that the tile begins with
  int64_t row;   // floats from row to row
};

// One pass: `num` images into one column of kStep sums, of one channel.
struct Pass {
  int64_t first;                  // the row that the tile begins with
  int64_t h, row;                 // rows of the image, bytes from row to row
  const uint8_t *const *fetched;  // of each of `num` images the bytes that are fetched meanwhile, or null
  Target sums, outputs;
  Floats mean, inv_std;
};

// A row of sums that is complete, or not yet.
template <bool end>
inline void keep(const Pass &pass, int64_t y, Floats sum) {
  if (end)
    store_any(pass.outputs.first + (y - pass.first) * pass.outputs.row, (sum - pass.mean) * pass.inv_std);
  else
    store(pass.sums.first + (y - pass.first) * pass.sums.row, sum);
}

// edge: some rows are outside of some images. Their pixels are taken from the nearest row, and masked: a branch here
// would be mispredicted every other time, and took 1.4 times as long. turn: some images are mirrored.
template <int num, bool begin, bool turn, bool end, bool edge>
inline void add_rows(const Pass &pass, int64_t first, int64_t last, const uint8_t *const *pixels, const Mask *masks,
                     const Floats *weights, const Source *sources) {
  for (int64_t y = first; y < last; y++) {
    if (pass.fetched && (y & 3) < num) __builtin_prefetch(pass.fetched[y & 3] + (y - pass.first) * kStep, 0, 2);
    Floats sum = begin ? zeros() : load(pass.sums.first + (y - pass.first) * pass.sums.row);
    for (int j = 0; j < num; j++) {
      const uint8_t *from = pixels[j] + y * pass.row;
      Mask mask = masks[j];
      if (edge) {
        const int64_t at = y + sources[j].dy, most = pass.h - 1;
        const int64_t nearest = at < 0 ? 0 : at > most ? most : at;
        from += (nearest - at) * pass.row;
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
    keep<end>(pass, y, begin ? zeros() : load(pass.sums.first + (y - pass.first) * pass.sums.row));
}

// Rows first .. last - 1 of a tile, all channels. out: null, or where the image begins if these are its last sources.
struct Tile {
  int64_t first, last;
  const Output *output;
  float *out;
};

// Adds num images to the tile's sums[c tile_rows row_floats]; `next` are fetched meanwhile.
template <int num, bool begin, bool turn, bool end>
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
  const uint8_t *pixels[num], *fetched[num];
  Mask masks[num];
  Pass pass{first, shape.h, shape.w, next ? fetched : nullptr, {nullptr, space.row_floats}, {nullptr, shape.w}, {}, {}};
  for (int64_t x = 0; x < shape.w; x += kStep) {
    for (int j = 0; j < num; j++) {
      const bool flip = turn && sources[j].flip;
      const int64_t column = flip ? shape.w - kStep - x : x;
      const auto valid = load_bytes(space.valid(sources[j].dx) + column);
      pixels[j] = sources[j].pixels + sources[j].dy * shape.w + sources[j].dx + column;
      masks[j] = to_mask(turn ? turned(valid, flip) : valid);
      if (next) fetched[j] = next[j].pixels + first * shape.w + x * (last - first);
    }
    for (int64_t channel = 0; channel < shape.c; channel++) {
      pass.sums.first = space.sums() + channel * space.tile_rows * space.row_floats + x;
      if (end) {
        pass.outputs.first = tile.out + channel * shape.plane() + first * shape.w + x;
        pass.mean = all(tile.output->mean[channel]);
        pass.inv_std = all(tile.output->inv_std[channel]);
      }
      add_nothing<begin, end>(pass, first, begin_any);
      add_rows<num, begin, turn, end, true>(pass, begin_any, inner, pixels, masks, weights, sources);
      add_rows<num, begin, turn, end, false>(pass, inner, inner_end, pixels, masks, weights, sources);
      add_rows<num, begin, turn, end, true>(pass, inner_end, end_any, pixels, masks, weights, sources);
      add_nothing<begin, end>(pass, end_any, last);
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
    pick(begin, turn, end)(space, these, next, tile);
    at += group;
  }
}

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

// Sums of more images are made of sums of so many, as float loses too much in a long one: 5,000 images in a row gave
// errors of 3.7e-6 in units of 1/256, over the bound of 2e-6.
constexpr int64_t kLongest = 256;

void sum_tile(const Workspace &space, const Source *sources, int64_t num, int64_t ahead, const Tile &tile) {
  if (num <= kLongest) return sum_images(space, sources, num, ahead, tile);
  float *sums = space.sums(), *totals = space.totals();
  const int64_t size = space.shape.c * space.tile_rows * space.row_floats;
  for (int64_t at = 0; at < num; at += kLongest) {
    const int64_t part = num - at < kLongest ? num - at : kLongest;
    sum_images(space, sources + at, part, num - at - part + ahead, {tile.first, tile.last, nullptr, nullptr});
    for (int64_t i = 0; i < size; i++) totals[i] = at ? totals[i] + sums[i] : sums[i];
  }
  std::memcpy(sums, totals, static_cast<size_t>(size) * sizeof(float));
}

void superpose(Workspace &space, const Output &output, const Source *sources, int64_t num, int64_t ahead, void *out) {
  const Shape &shape = space.shape;
  // The last pass writes where no value needs another place or form than it has in the sums.
  const bool direct =
      num <= kLongest && !output.half && !output.hwc && output.channels == shape.c && shape.w % kStep == 0;
  if (space.tile_rows < shape.h)
    ahead = 0;  // a few rows of a large image are summed at a time, and the next are its own
  for (int64_t first = 0; first < shape.h; first += space.tile_rows) {
    const int64_t last = first + space.tile_rows < shape.h ? first + space.tile_rows : shape.h;
    sum_tile(space, sources, num, ahead, {first, last, &output, direct ? static_cast<float *>(out) : nullptr});
    if (direct) continue;
    if (output.half)
      write(space, output, first, last, static_cast<uint16_t *>(out));
    else
      write(space, output, first, last, static_cast<float *>(out));
  }
}

// The counters and keys of as many blocks as there are lanes, each word in 64 bits: only the lower 32 count.
#if defined(__AVX512F__)
constexpr uint32_t kWords = 8;
using Wide = __m512i;
inline Wide wide(uint64_t value) { return _mm512_set1_epi64(static_cast<int64_t>(value)); }
inline Wide load_wide(const uint64_t *from) { return _mm512_loadu_si512(from); }
inline Wide multiply(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
inline Wide high_half(Wide a) { return _mm512_srli_epi64(a, 32); }
inline Wide exclusive_or(Wide a, Wide b) { return _mm512_xor_si512(a, b); }
inline void store_low(uint32_t *to, Wide a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtepi64_epi32(a));
}
#elif defined(__AVX2__)
constexpr uint32_t kWords = 4;
using Wide = __m256i;
inline Wide wide(uint64_t value) { return _mm256_set1_epi64x(static_cast<int64_t>(value)); }
inline Wide load_wide(const uint64_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }
inline Wide multiply(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
inline Wide high_half(Wide a) { return _mm256_srli_epi64(a, 32); }
inline Wide exclusive_or(Wide a, Wide b) { return _mm256_xor_si256(a, b); }
inline void store_low(uint32_t *to, Wide a) {
  const Wide low = _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(low));
}
#else
constexpr uint32_t kWords = 1;
using Wide = uint64_t;
inline Wide wide(uint64_t value) { return value; }
inline Wide load_wide(const uint64_t *from) { return *from; }
inline Wide multiply(Wide a, Wide b) { return (a & 0xFFFFFFFF) * b; }
inline Wide high_half(Wide a) { return a >> 32; }
inline Wide exclusive_or(Wide a, Wide b) { return a ^ b; }
inline void store_low(uint32_t *to, Wide a) { *to = static_cast<uint32_t>(a); }
#endif
static_assert(kPhiloxBlocks % kWords == 0, "blocks come in whole groups");

void philox_blocks(uint64_t seed, uint32_t stream, uint32_t epoch, uint32_t index, uint32_t first, uint32_t n,
                   uint32_t stride, uint32_t *words) {
  const Wide m0 = wide(0xD2511F53u), m1 = wide(0xCD9E8D57u);
  const uint32_t whole = (n + kPhiloxBlocks - 1) / kPhiloxBlocks * kPhiloxBlocks;
  for (uint32_t done = 0; done < whole; done += kWords) {
    uint64_t blocks[kWords];
    for (uint32_t i = 0; i < kWords; i++) blocks[i] = first + done + i;
    Wide c0 = load_wide(blocks), c1 = wide(index), c2 = wide(epoch), c3 = wide(stream);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const Wide p0 = multiply(c0, m0), p1 = multiply(c2, m1);
      c0 = exclusive_or(exclusive_or(high_half(p1), c1), wide(k0));
      c2 = exclusive_or(exclusive_or(high_half(p0), c3), wide(k1));
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

inline uint32_t whole_lanes(uint32_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

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

void yardstick(const uint8_t *const *images, const float *weights, int64_t num_images, int64_t size, float *sums) {
  int64_t at = 0;
  for (; at + 4 <= num_images; at += 4) plain_sums<4>(images + at, weights + at, size, sums);
  for (; at < num_images; at++) plain_sums<1>(images + at, weights + at, size, sums);
}

}  // namespace

extern const Kernels table;
#define FDT_TEXT_(x) #x
#define FDT_TEXT(x) FDT_TEXT_(x)
const Kernels table = {FDT_TEXT(FDT_ISA), superpose, philox_blocks, draw_classes, take_class, to_planes, yardstick};

}  // namespace FDT_ISA
}  // namespace fdt
