// All mixings on the GPU: plans as superposition.py draws them, bit for bit, and the sums, in one launch a batch.
//
// A block makes one output, or a tile of one where the image is large (every tile draws the whole plan: integers are
// cheaper than a trip through memory). Its first warp draws, kPiece images at a time, and writes the target, while the
// others gather what it has drawn before. Whether there is a box is one choice for the whole block: no pixel of a plain
// sum asks. Compiled at run time by NVRTC for the machine's own GPU, with no header but the three beside it; as plain
// C++ by the tests (tests/native_emulation).
#include "superpose.h"

#ifndef FDT_DYNAMIC_SHARED
#define FDT_DYNAMIC_SHARED(name) extern __shared__ uint32_t name[]
#endif

namespace fdt {
namespace gpu {
namespace {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
constexpr uint32_t kPiece = 8;     // images that are drawn before they are gathered; divides 32
constexpr uint32_t kInFlight = 4;  // images that a thread reads at once; divides kPiece

// All threads of the block wait for each other. __syncthreads must be one place for all; this may be called from two,
// as the warp that draws and those that gather have loops of their own (and so no registers for each other's work).
// So it is not `bar.sync`, which stands for `barrier.sync.aligned`: one instruction for the whole block.
__device__ void meet() {
#ifdef __CUDA_ARCH__
  asm volatile("barrier.sync 1, %0;" ::"r"(blockDim.x) : "memory");
#else
  __syncthreads();
#endif
}

// Reads a word that nobody writes, or gives 0. As an instruction that is predicated, and not a branch: the compiler
// would make one of it, and wait for every word before it asks for the next.
__device__ uint32_t read_if(bool readable, const uint32_t *from) {
#ifdef __CUDA_ARCH__
  uint32_t word;
  asm("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %2, 0;\n\tmov.u32 %0, 0;\n\t@p ld.global.nc.u32 %0, [%1];\n\t}"
      : "=r"(word)
      : "l"(from), "r"(static_cast<uint32_t>(readable)));
  return word;
#else
  return readable ? *from : 0;
#endif
}

// The sum of the values of the lanes up to this one.
__device__ uint32_t sum_upto(uint32_t value) {
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint32_t below = __shfl_up_sync(kAllLanes, value, distance);
    if ((threadIdx.x & 31) >= distance) value += below;
  }
  return value;
}

// Which lane holds the rank-th of all that the lanes count, and the rank within it; 32 if they count no more than rank,
// and how many are left then.
__device__ uint32_t find_lane(uint32_t count, uint32_t &rank) {
  const uint32_t upto = sum_upto(count);
  const uint32_t beyond = __ballot_sync(kAllLanes, upto > rank);
  const uint32_t lane = beyond ? __ffs(static_cast<int>(beyond)) - 1 : 32;
  rank -= __shfl_sync(kAllLanes, beyond ? upto - count : upto, beyond ? lane : 31);
  return lane;
}

// An output's id (plan.h).
struct OutputId {
  uint32_t epoch, index;
  uint32_t leader = kNone;  // of branches that are led; kNone: the first image is drawn too

  __device__ OutputId(const Parameters &p, uint32_t output) {
    const uint32_t count = p.spans[0].count;
    const Span &span = p.spans[output / count];
    epoch = span.epoch;
    index = span.index(output % count);
    if (p.leads == Leads::kDrawn) return;
    leader = p.leads == Leads::kByIndex ? index : p.first_place + output;
    if (p.order) leader = p.order[leader];
  }
};

// One image of an output (plan.h, Constituent).
struct PlanEntry {
  uint32_t image, label;
  int32_t dy, dx;  // 0 .. 2 * pad
  uint32_t flip;
  float weight;
};

// What the threads that gather know of a plan before its images.
struct Outline {
  uint32_t k;
  Box box;
};

// Draws one plan: the whole warp calls everything. Where classes are not to repeat, unused images are counted in three
// levels: by lane (`upto`, kept as prefix sums, so that a step needs one ballot and no scan), by leaves of 32 classes,
// and by class. Up to 32 classes a lane is a class, up to 1,024 a leaf.
struct Drawer {
  const Parameters &p;
  OutputId id;
  uint32_t *const unused;  // shared, [leaves]: images of unused classes
  uint32_t *const used;    // shared, [leaves]: a bit a class
  const uint32_t lane;
  uint32_t span = 1;   // classes a lane stands for
  uint32_t upto = 0;   // unused images of the lanes up to this one
  uint32_t total = 0;  // of all
  uint32_t number = 0;  // of the branch
  uint32_t k = 1, drawn = 0;
  float of_pair = 1;  // weight of the lane's image in MixUp and CutMix
  Words words;        // of block `drawn` / 32 * 32 + lane + 1

  __device__ Drawer(const Parameters &parameters, const OutputId &which, uint32_t *memory, Outline &outline)
      : p(parameters),
        id(which),
        unused(memory),
        used(memory + (parameters.num_classes + 31) / 32),
        lane(threadIdx.x & 31) {
    const uint32_t leaves = (p.num_classes + 31) / 32;
    if (leaves > 1) span = (leaves + 31) / 32 * 32;
    upto = start((lane + 1) * span);  // on their way while K is drawn
    total = start(p.num_classes);
    const Words first = random_words(p.seed, kStreamPlan, id.epoch, id.index, 0);
    while (first.w[2] >= p.branches[number].end) number++;
    const Mixed &mixed = branch();
    if (first.w[2] < mixed.mixed_end)
      k = mixed.lowest + bounded64(first.w[0], first.w[1], mixed.highest - mixed.lowest + 1);
    const Box box = weigh_pair(first);
    if (lane == 0) outline = {k, box};
    if (!mixed.led) id.leader = kNone;
    if (leaves == 1 || !mixed.unique) return;
    for (uint32_t leaf = lane; leaf < leaves; leaf += 32) {
      unused[leaf] = start(32 * leaf + 32) - start(32 * leaf);
      used[leaf] = 0;
    }
    __syncwarp();
  }

  __device__ const Mixed &branch() const { return p.branches[number]; }

  // Sets of_pair. The box is without area where there is none.
  __device__ Box weigh_pair(const Words &first) {
    const Mixed &mixed = branch();
    Box box{};
    if (mixed.kind == Kind::kSum || k == 1) return box;
    const uint32_t lambda = __ldg(mixed.quantiles + (first.w[0] >> (32 - kQuantileBits)));
    if (mixed.kind == Kind::kCutMix) {
      box = draw_box(first.w, lambda, p.h, p.w);
      of_pair = area_weight(box, p.h, p.w, lane == 1);
    } else {
      of_pair = static_cast<float>(lane == 1 ? (1u << 24) - lambda : lambda) * kLambdaUnit;
    }
    return box;
  }

  __device__ uint32_t start(uint32_t label) const {
    return __ldg(p.starts + (label < p.num_classes ? label : p.num_classes));
  }

  // Unused images of a lane's class in this leaf.
  __device__ uint32_t unused_of_class(uint32_t leaf) const {
    const uint32_t label = 32 * leaf + lane;
    return (used[leaf] >> lane) & 1 ? 0 : start(label + 1) - start(label);
  }

  __device__ uint32_t find_leaf(uint32_t segment, uint32_t &rank) const {
    const uint32_t per_lane = span / 32, leaves = (p.num_classes + 31) / 32;
    const uint32_t first = segment * per_lane;
    if (per_lane == 1) return first;
    const uint32_t end = first + per_lane < leaves ? first + per_lane : leaves;
    for (uint32_t at = first; at < end; at += 32) {
      const uint32_t found = find_lane(at + lane < end ? unused[at + lane] : 0, rank);
      if (found < 32) return at + found;
    }
    return first;  // never: rank is below the segment's sum
  }

  // The class of the rank-th unused image; `rank` becomes its place in the class.
  __device__ uint32_t find_class(uint32_t &rank) const {
    const uint32_t segment = __ffs(static_cast<int>(__ballot_sync(kAllLanes, upto > rank))) - 1;
    const uint32_t before = __shfl_sync(kAllLanes, upto, (segment - 1) & 31);
    rank -= segment ? before : 0;
    if (span == 1) return segment;
    const uint32_t leaf = find_leaf(segment, rank);
    return 32 * leaf + find_lane(unused_of_class(leaf), rank);
  }

  __device__ void take(uint32_t label) {
    const uint32_t count = start(label + 1) - start(label);
    total -= count;
    if (lane >= label / span) upto -= count;
    if (span == 1) return;
    if (lane == 0) {
      unused[label / 32] -= count;
      used[label / 32] |= 1u << (label & 31);
    }
    __syncwarp();
  }

  // Of the lane's image, which is the plan's i-th.
  __device__ float weight(uint32_t i) const {
    const Mixed &mixed = branch();
    if (mixed.kind != Kind::kSum) return of_pair;
    if (mixed.table) return mixed.table[static_cast<uint64_t>(k) * (k - 1) / 2 + i];
    return static_cast<float>(mixed.terms[i] / mixed.sums[k - 1]);
  }

  __device__ bool is_led(uint32_t i) const { return i == 0 && id.leader != kNone; }

  // Lane i: the i-th of the next images, of a class that is unused.
  __device__ void draw_unused(uint32_t num, PlanEntry &mine) {
    uint32_t place = 0;
    for (uint32_t i = 0; i < num; i++) {
      const uint32_t source = (drawn + i) & 31;
      uint32_t rank =
          bounded64(__shfl_sync(kAllLanes, words.w[0], source), __shfl_sync(kAllLanes, words.w[1], source), total);
      const uint32_t found = is_led(drawn + i) ? p.labels[id.leader] : find_class(rank);
      if (lane == i) {
        mine.label = found;
        place = rank;
      }
      take(found);
    }
    if (lane < num) mine.image = is_led(drawn + lane) ? id.leader : p.by_class[start(mine.label) + place];
  }

  // Lane i: the i-th of the next images, any of all.
  __device__ void draw_any(uint32_t num, PlanEntry &mine) const {
    const uint32_t source = (drawn + lane) & 31;
    const uint32_t rank =
        bounded64(__shfl_sync(kAllLanes, words.w[0], source), __shfl_sync(kAllLanes, words.w[1], source), total);
    if (lane >= num) return;
    mine.image = is_led(drawn + lane) ? id.leader : p.by_class[rank];
    mine.label = p.labels[mine.image];
  }

  // Draws the next kPiece images, or those that are left, and returns their number; lane i holds the i-th.
  __device__ uint32_t draw(PlanEntry &mine) {
    const uint32_t left = k - drawn, num = left < kPiece ? left : kPiece;
    if (drawn % 32 == 0) words = random_words(p.seed, kStreamPlan, id.epoch, id.index, drawn + lane + 1);
    mine = {};
    if (branch().unique)
      draw_unused(num, mine);
    else
      draw_any(num, mine);
    const uint32_t row = __shfl_sync(kAllLanes, words.w[2], (drawn + lane) & 31);
    const uint32_t column = __shfl_sync(kAllLanes, words.w[3], (drawn + lane) & 31);
    if (lane < num) {
      const uint32_t shifts = 2 * static_cast<uint32_t>(p.pad) + 1;
      mine.dy = static_cast<int32_t>(bounded32(row, shifts));
      mine.dx = static_cast<int32_t>(bounded32(column, shifts));
      mine.flip = p.flip ? column & 1 : 0;
      mine.weight = weight(drawn + lane);
    }
    drawn += num;
    return num;
  }
};

// The target of an output: the whole warp that draws calls everything. A row is zero before.
struct Target {
  const Parameters &p;
  const uint32_t output;
  float *const row;
  float most = -1;  // the largest weight so far, and the class of the first image that has it
  uint32_t heaviest = 0;

  __device__ Target(const Parameters &parameters, uint32_t which)
      : p(parameters),
        output(which),
        row(static_cast<float *>(p.targets) + static_cast<uint64_t>(which) * p.num_classes) {}

  // Lane i < num holds the i-th image of the plan's next piece.
  __device__ void add(uint32_t num, const PlanEntry &mine, bool unique) {
    const uint32_t lane = threadIdx.x & 31;
    if (p.target_kind != Targets::kSoft)
      find_heaviest(num, mine);
    else if (!unique)
      add_up(num, mine);
    else if (lane < num)
      row[mine.label] = mine.weight;
  }

  __device__ void find_heaviest(uint32_t num, const PlanEntry &mine) {
    for (uint32_t i = 0; i < num; i++) {
      const float weight = __shfl_sync(kAllLanes, mine.weight, i);
      const uint32_t label = __shfl_sync(kAllLanes, mine.label, i);
      if (weight > most) {
        most = weight;
        heaviest = label;
      }
    }
  }

  // Of each class one lane, that of its first image, reads and writes the sum: in the order of the plan, and without a
  // race. Those of the piece before are in the row, as all threads have met since.
  __device__ void add_up(uint32_t num, const PlanEntry &mine) {
    const uint32_t lane = threadIdx.x & 31;
    const uint32_t same = __match_any_sync(kAllLanes, mine.label) & ((1u << num) - 1);
    const bool is_first = lane < num && (same & ((1u << lane) - 1)) == 0;
    float sum = is_first ? row[mine.label] : 0;
    for (uint32_t i = 0; i < num; i++) {
      const float weight = __shfl_sync(kAllLanes, mine.weight, i);
      if ((same >> i) & 1) sum += weight;
    }
    if (is_first) row[mine.label] = sum;
  }

  // Once all images are added.
  __device__ void finish(const Smoothing &smooth) const {
    const uint32_t lane = threadIdx.x & 31;
    if (p.target_kind == Targets::kLabel) {
      if (lane == 0) static_cast<int64_t *>(p.targets)[output] = heaviest;
      return;
    }
    if (p.target_kind == Targets::kDominant && lane == 0) row[heaviest] = 1;
    if (smooth.share == 0) return;
    __syncwarp();  // what other lanes have written
    for (uint32_t i = lane; i < p.num_classes; i += 32) row[i] = smooth(row[i]);
  }
};

// One image of a sum as the gathering threads need it. It is read in aligned words of 4 bytes, and never a word that
// holds no byte of it, wherever it lies.
struct alignas(16) Source {
  const uint32_t *words;  // the one that holds the image's first byte
  int32_t last;           // the number of the one that holds its last byte
  int32_t offset;         // bytes from `words` to where the unshifted pixel (0, 0) comes from
  int32_t dy, dx;         // -pad .. pad
  uint32_t flip;
  float weight;
};

template <int c>
__device__ Source source_of(const Parameters &p, const PlanEntry &entry) {
  const int32_t size = p.h * p.w * c;
  const uint8_t *image = p.table ? p.table[entry.image] : p.pixels + static_cast<uint64_t>(entry.image) * size;
  const int32_t misaligned = static_cast<int32_t>(reinterpret_cast<uint64_t>(image) & 3);
  const int32_t dy = entry.dy - p.pad, dx = entry.dx - p.pad;
  return Source{reinterpret_cast<const uint32_t *>(image - misaligned),
                (misaligned + size - 1) / 4,
                misaligned + (dy * p.w + dx) * c,
                dy,
                dx,
                entry.flip,
                entry.weight};
}

// Pixels x .. x + 3 of row y of the output: what one thread sums. The last ones of a row may be beyond its end.
template <int c>
struct Unit {
  int32_t h, w, y, x;
  float sums[kUnitPixels * c];

  // Bytes of an image as they were read: c aligned words and one more, since the pixels may begin within the first.
  struct Read {
    uint32_t words[c + 1];
    uint32_t bits;  // where in words[0] the pixels begin
    int32_t x;      // the first one's column in the image; outside of [0, w) they count as zero
  };

  __device__ Unit(const Parameters &p, uint32_t number) : h(p.h), w(p.w) {
    const uint32_t per_row = (static_cast<uint32_t>(w) + kUnitPixels - 1) / kUnitPixels;
    y = static_cast<int32_t>(number / per_row);
    x = static_cast<int32_t>(number % per_row) * kUnitPixels;
    for (int i = 0; i < kUnitPixels * c; i++) sums[i] = 0;
  }

  // A mirrored unit reads the same four pixels as its mirror image would, in ascending order: a coalesced read.
  __device__ void read(const Source &source, Read &to) const {
    const int32_t first = source.flip ? w - kUnitPixels - x : x;
    const int32_t at = source.offset + (y * w + first) * c;
    const int32_t word = at >> 2;
    const bool inside = static_cast<uint32_t>(y + source.dy) < static_cast<uint32_t>(h);
    to.x = first + source.dx;
    to.bits = static_cast<uint32_t>(at & 3) * 8;
#pragma unroll
    for (int i = 0; i <= c; i++) {
      const bool readable = inside && static_cast<uint32_t>(word + i) <= static_cast<uint32_t>(source.last);
      to.words[i] = read_if(readable, source.words + word + i);
    }
  }

  // A byte b becomes a float as 2^23 + b less 2^23: exact, and faster than a conversion, of which a GPU does few at
  // once.
  template <bool flip>
  __device__ void add_turned(const Read &read, float weight) {
    float weights[kUnitPixels];
#pragma unroll
    for (int i = 0; i < kUnitPixels; i++)
      weights[i] = static_cast<uint32_t>(read.x + i) < static_cast<uint32_t>(w) ? weight : 0.0f;
#pragma unroll
    for (int i = 0; i < c; i++) {
      const uint32_t bytes = __funnelshift_r(read.words[i], read.words[i + 1], read.bits);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int pixel = (4 * i + j) / c, channel = (4 * i + j) % c;
        const float value = __uint_as_float(__byte_perm(bytes, 0x4B000000u, 0x7540u + j)) - 8388608.0f;
        float &sum = sums[(flip ? kUnitPixels - 1 - pixel : pixel) * c + channel];
        sum = __fmaf_rn(weights[pixel], value, sum);  // the compiler would add after the branch that chose `flip`
      }
    }
  }

  __device__ void add(const Read &read, uint32_t flip, float weight) {
    if (flip)
      add_turned<true>(read, weight);
    else
      add_turned<false>(read, weight);
  }

  __device__ void gather(const Source *sources, uint32_t num) {
    for (uint32_t at = 0; at < num; at += kInFlight) {
      Read reads[kInFlight];
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; i++) read(sources[at + i], reads[i]);
#pragma unroll
      for (uint32_t i = 0; i < kInFlight; i++) add(reads[i], sources[at + i].flip, sources[at + i].weight);
    }
  }

  // The second image inside of the box, the first outside.
  __device__ void gather_pair(const Source *pair, const Box &box) {
    Unit inside = *this;
    Read reads[2];
    read(pair[0], reads[0]);
    read(pair[1], reads[1]);
    add(reads[0], pair[0].flip, 1);
    inside.add(reads[1], pair[1].flip, 1);
#pragma unroll
    for (int i = 0; i < kUnitPixels * c; i++)
      if (box.holds(y, x + i / c)) sums[i] = inside.sums[i];
  }
};

// Where a gathering thread keeps sums that it has set aside.
struct Aside {
  float *first;  // shared; of the others every kGatherThreads-th

  template <int c>
  __device__ void put(Unit<c> &unit, bool begin) const {
    for (int i = 0; i < kUnitPixels * c; i++) {
      float &sum = first[i * kGatherThreads];
      sum = begin ? unit.sums[i] : sum + unit.sums[i];
      unit.sums[i] = 0;
    }
  }

  template <int c>
  __device__ void add_to(Unit<c> &unit) const {
    for (int i = 0; i < kUnitPixels * c; i++) unit.sums[i] += first[i * kGatherThreads];
  }
};

// float -> float16, to the nearest. An instruction, as NVRTC has no cuda_fp16.h.
__device__ uint16_t to_half(float value) {
#ifdef __CUDA_ARCH__
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  return emulated_half(value);
#endif
}

// Writes n of 4 neighbouring values to element `at`; whole: all four, and the address is a multiple of their size.
__device__ void write(void *to, uint64_t at, const float *values, int n, bool half, bool whole) {
  if (half) {
    uint16_t *out = static_cast<uint16_t *>(to) + at;
    uint16_t halves[4];
    for (int i = 0; i < 4; i++) halves[i] = to_half(values[i]);
    if (whole)
      *reinterpret_cast<ushort4 *>(out) = ushort4{halves[0], halves[1], halves[2], halves[3]};
    else
      for (int i = 0; i < 4; i++)
        if (i < n) out[i] = halves[i];
  } else {
    float *out = static_cast<float *>(to) + at;
    if (whole)
      *reinterpret_cast<float4 *>(out) = float4{values[0], values[1], values[2], values[3]};
    else
      for (int i = 0; i < 4; i++)
        if (i < n) out[i] = values[i];
  }
}

template <int c, int channels>
__device__ void write_unit(const Parameters &p, uint32_t output, const Unit<c> &unit) {
  float values[kUnitPixels * channels];
#pragma unroll
  for (int i = 0; i < kUnitPixels * channels; i++) {
    const int pixel = i / channels, channel = i % channels;
    const float sum = unit.sums[pixel * c + (c == 1 ? 0 : channel)];
    values[i] = (sum - p.mean[channel]) * p.inv_std[channel];
  }
  const uint64_t area = static_cast<uint64_t>(p.h) * p.w, first = output * area * channels;
  const uint64_t pixel = static_cast<uint64_t>(unit.y) * p.w + unit.x;
  const int left = p.w - unit.x < kUnitPixels ? p.w - unit.x : kUnitPixels;
  // Then every row of every channel is aligned.
  const bool whole = p.w % kUnitPixels == 0 && reinterpret_cast<uint64_t>(p.images) % 16 == 0;
  if (p.hwc) {
#pragma unroll
    for (int i = 0; i < channels; i++)
      write(p.images, first + pixel * channels + 4 * i, values + 4 * i, left * channels - 4 * i, p.half, whole);
  } else {
#pragma unroll
    for (int channel = 0; channel < channels; channel++) {
      const float row[4] = {values[channel], values[channels + channel], values[2 * channels + channel],
                            values[3 * channels + channel]};
      write(p.images, first + channel * area + pixel, row, left, p.half, whole);
    }
  }
}

// The warp that draws: the next piece as sources, filled up to a multiple of kInFlight.
template <int c>
__device__ void draw_sources(const Parameters &p, Drawer &drawer, Target &target, bool first_tile, Source *piece) {
  const uint32_t lane = threadIdx.x & 31;
  PlanEntry entry;
  const uint32_t num = drawer.draw(entry);
  if (first_tile) target.add(num, entry, drawer.branch().unique);
  // A piece is filled up with images of which every row is outside, so nothing is read.
  if (lane < kPiece) piece[lane] = lane < num ? source_of<c>(p, entry) : Source{nullptr, -1, 0, p.h, 0, 0, 0.0f};
}

// Grid (outputs, tiles), block kDrawThreads + up to kGatherThreads. c: channels of an image, channels: of an output.
template <int c, int channels>
__device__ void superpose(const Parameters &p) {
  FDT_DYNAMIC_SHARED(memory);
  __shared__ Source pieces[2][kPiece];
  __shared__ Outline outline;
  const uint32_t output = blockIdx.x;
  const bool draws = threadIdx.x < kDrawThreads, first_tile = blockIdx.y == 0;
  const uint32_t number = blockIdx.y * (blockDim.x - kDrawThreads) + (threadIdx.x - kDrawThreads);
  Unit<c> unit(p, draws ? 0 : number);
  const bool in_image = !draws && unit.y < p.h;
  const OutputId id(p, output);

  if (first_tile && p.target_kind != Targets::kLabel) {  // a row of zeros, where the weights are written later
    float *row = static_cast<float *>(p.targets) + static_cast<uint64_t>(output) * p.num_classes;
    for (uint32_t i = threadIdx.x; i < p.num_classes; i += blockDim.x) row[i] = 0;
  }
  meet();  // zeros are written before weights are
  if (draws) {
    Drawer drawer(p, id, memory, outline);
    Target target(p, output);
    draw_sources<c>(p, drawer, target, first_tile, pieces[0]);
    for (uint32_t at = 0; at < drawer.k; at += kPiece) {
      meet();
      if (at + kPiece < drawer.k) draw_sources<c>(p, drawer, target, first_tile, pieces[(at / kPiece + 1) & 1]);
    }
    if (first_tile) target.finish(drawer.branch().smoothing);
    return;
  }
  const Aside aside{reinterpret_cast<float *>(memory + drawing_words(p.num_classes)) + threadIdx.x - kDrawThreads};
  meet();
  const bool has_box = outline.box.area() > 0;
  if (has_box && in_image) unit.gather_pair(pieces[0], outline.box);
  const uint32_t k = has_box ? 0 : outline.k;  // images that are left to be summed
  for (uint32_t at = 0; at < k; at += kPiece) {
    if (at) meet();
    const uint32_t left = k - at;
    if (in_image) unit.gather(pieces[(at / kPiece) & 1], left < kPiece ? left : kPiece);
    if (left >= kPiece && (at + kPiece) % kSetAside == 0) aside.put(unit, at < kSetAside);
  }
  if (k >= kSetAside) aside.add_to(unit);
  if (in_image) write_unit<c, channels>(p, output, unit);
}

}  // namespace
}  // namespace gpu
}  // namespace fdt

// Copies what it was given as a parameter: data for a batch, in the order of the stream, and without pinned memory.
extern "C" __global__ void fdt_store(uint32_t *to, uint32_t num_words, fdt::gpu::Chunk chunk) {
  for (uint32_t i = threadIdx.x; i < num_words; i += blockDim.x) to[i] = chunk.words[i];
}

// FDT_SUPERPOSE(c, channels) makes a kernel of the above for images of c channels and outputs of `channels`.
#define FDT_SUPERPOSE(c, channels)                                                                                 \
  extern "C" __global__ void __launch_bounds__(fdt::gpu::kDrawThreads + fdt::gpu::kGatherThreads, (c) < 4 ? 4 : 3) \
      fdt_superpose_##c##_##channels(fdt::gpu::Parameters p) {                                                     \
    fdt::gpu::superpose<c, channels>(p);                                                                           \
  }
