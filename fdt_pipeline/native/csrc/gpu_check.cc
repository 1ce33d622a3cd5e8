#include "gpu_check.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "gpu.h"

namespace fdt {
namespace {

constexpr uint64_t kSeed = 0x0123456789ABCDEF;
constexpr float kMean = 122, kScale = 256;
constexpr double kTolerance = 2e-6, kHalfStep = 1.0 / 2048;  // a half has 11 bits

struct Case {
  uint32_t num_classes;
  int64_t images_of_class;
  Shape shape;
  int channels;
  uint32_t pad;
  bool flip, half, hwc;
  Targets targets;
  int64_t num_outputs;
};

const Case kCases[] = {
    {10, 3, {32, 32, 3}, 3, 4, true, true, false, Targets::kSoft, 12},
    {100, 2, {33, 17, 3}, 3, 2, true, false, true, Targets::kDominant, 5},
    {1000, 1, {28, 28, 1}, 3, 5, false, false, false, Targets::kLabel, 2},
    {7, 5, {40, 64, 4}, 4, 0, true, false, false, Targets::kSoft, 5},
};

// Pixels without a pattern that a shift could hide.
std::vector<uint8_t> made_up_pixels(size_t n) {
  std::vector<uint8_t> pixels(n);
  uint64_t state = 1;
  for (uint8_t &pixel : pixels) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    pixel = static_cast<uint8_t>(state >> 56);
  }
  return pixels;
}

std::vector<int64_t> labels_of(const Case &c) {
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < c.images_of_class * c.num_classes; i++) labels.push_back(i % c.num_classes);
  return labels;
}

// Two that follow each other, one that is padding, and then every other with a leader.
std::vector<Id> made_up_ids(const Case &c) {
  std::vector<Id> ids;
  for (int64_t i = 0; i < c.num_outputs; i++) ids.push_back({5, i == 2 ? -1 : 1000 + i, i > 2 && i % 2 ? i : -1});
  return ids;
}

// What the CPU makes of one case, and the GPU.
class Comparison {
 public:
  explicit Comparison(const Case &given)
      : c_(given),
        labels_(labels_of(given)),
        classes_(labels_.data(), labels_.size(), given.num_classes),
        pixels_(made_up_pixels(labels_.size() * static_cast<size_t>(given.shape.size()))),
        ids_(made_up_ids(given)),
        series_("harmonic", given.num_classes) {
    options_.seed = kSeed;
    options_.pad = c_.pad;
    options_.flip = c_.flip;
    output_.channels = c_.channels;
    for (int i = 0; i < kMostChannels; i++) output_.mean[i] = kMean, output_.inv_std[i] = 1 / kScale;
    output_.half = c_.half;
    output_.hwc = c_.hwc;
    PlanDrawer drawer;
    drawer.reset(options_, classes_);
    for (const Id &id : ids_) {
      plans_.emplace_back();
      if (id.index >= 0) drawer.draw(id, plans_.back());
    }
  }

  void compare() {
    GpuSuperpose superpose(options_, series_, output_, c_.targets);
    GpuPool pool(labels_.size(), c_.shape);
    pool.set_images(0, pool.n, pixels_.data());
    pool.set_classes(classes_);
    compare_plans(superpose, pool);
    const GpuMemory images(image_bytes() * plans_.size()), targets(target_bytes() * plans_.size());
    superpose.run(pool, ids_.data(), c_.num_outputs, images.as<void>(), targets.as<void>(), nullptr);
    compare_batch(images, targets, "resident");

    std::vector<GpuMemory> pieces;  // a window of images that lie each on its own
    std::vector<const uint8_t *> places;
    const size_t size = static_cast<size_t>(c_.shape.size());
    for (size_t i = 0; i < labels_.size(); i++) {
      pieces.emplace_back(&pixels_[i * size], size);
      places.push_back(pieces.back().as<const uint8_t>());
    }
    superpose.run_window(places.data(), c_.shape, classes_, ids_.data(), c_.num_outputs, images.as<void>(),
                         targets.as<void>(), nullptr);
    compare_batch(images, targets, "window");
  }

 private:
  size_t image_floats() const { return static_cast<size_t>(c_.shape.h * c_.shape.w * c_.channels); }
  size_t image_bytes() const { return image_floats() * (c_.half ? 2 : 4); }
  size_t target_bytes() const { return c_.targets == Targets::kLabel ? 8 : c_.num_classes * sizeof(float); }

  [[noreturn]] void fail(const std::string &what, size_t output) const {
    throw std::runtime_error("the GPU's " + what + " of output " + std::to_string(output) + " differ from the CPU's (" +
                             std::to_string(c_.num_classes) + " classes, " + std::to_string(c_.shape.h) + "x" +
                             std::to_string(c_.shape.w) + "x" + std::to_string(c_.shape.c) + ")");
  }

  void compare_plans(GpuSuperpose &superpose, const GpuPool &pool) const {
    std::vector<gpu::PlanEntry> entries;
    const std::vector<uint32_t> k = superpose.draw_plans(pool, ids_.data(), c_.num_outputs, entries);
    size_t at = 0;
    for (size_t i = 0; i < plans_.size(); i++) {
      if (k[i] != plans_[i].size()) fail("numbers of images", i);
      for (uint32_t j = 0; j < k[i]; j++) {
        const gpu::PlanEntry &ours = entries[at++];
        const Constituent &theirs = plans_[i][j];
        if (ours.image != theirs.image || ours.label != theirs.label || ours.dy != theirs.dy || ours.dx != theirs.dx ||
            (ours.flip != 0) != theirs.flip || ours.weight != series_(k[i], j))
          fail("plans", i);
      }
    }
  }

  // The output's value at (y, x, channel), by the definition.
  double expected(size_t output, int64_t y, int64_t x, int64_t channel) const {
    if (plans_[output].empty()) return 0;
    double sum = 0;
    const Shape &s = c_.shape;
    for (uint32_t i = 0; i < plans_[output].size(); i++) {
      const Constituent &c = plans_[output][i];
      const int64_t row = y + c.dy - c_.pad, column = (c.flip ? s.w - 1 - x : x) + c.dx - c_.pad;
      if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
      const int64_t at = c.image * s.size() + (row * s.w + column) * s.c + (s.c == 1 ? 0 : channel);
      sum += double{series_(static_cast<uint32_t>(plans_[output].size()), i)} * pixels_[static_cast<size_t>(at)];
    }
    return (sum - kMean) / kScale;
  }

  static double half_value(uint16_t bits) {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return bits & 0x8000 ? -magnitude : magnitude;
  }

  double value(const std::vector<char> &images, size_t at) const {
    uint16_t half;
    float single;
    if (c_.half) return std::memcpy(&half, &images[2 * at], 2), half_value(half);
    return std::memcpy(&single, &images[4 * at], 4), single;
  }

  void compare_image(const std::vector<char> &images, size_t output, const std::string &what) const {
    const Shape &s = c_.shape;
    for (int64_t y = 0; y < s.h; y++)
      for (int64_t x = 0; x < s.w; x++)
        for (int64_t channel = 0; channel < c_.channels; channel++) {
          const int64_t place = c_.hwc ? (y * s.w + x) * c_.channels + channel : (channel * s.h + y) * s.w + x;
          const double right = expected(output, y, x, channel);
          const double got = value(images, output * image_floats() + static_cast<size_t>(place));
          if (!(std::abs(got - right) <= kTolerance + (c_.half ? kHalfStep * std::abs(right) : 0)))
            fail(what + " images", output);
        }
  }

  void compare_target(const std::vector<char> &targets, size_t output, const std::string &what) const {
    const std::vector<Constituent> &plan = plans_[output];
    std::vector<char> right(target_bytes(), 0);
    if (c_.targets == Targets::kLabel) {
      const int64_t label = plan.empty() ? -1 : plan[0].label;
      std::memcpy(right.data(), &label, sizeof label);
    }
    auto put = [&](uint32_t label, float weight) {
      std::memcpy(&right[label * sizeof weight], &weight, sizeof weight);
    };
    if (c_.targets == Targets::kDominant && !plan.empty()) put(plan[0].label, 1);
    if (c_.targets == Targets::kSoft)
      for (uint32_t i = 0; i < plan.size(); i++) put(plan[i].label, series_(static_cast<uint32_t>(plan.size()), i));
    if (std::memcmp(right.data(), &targets[output * right.size()], right.size())) fail(what + " targets", output);
  }

  void compare_batch(const GpuMemory &images, const GpuMemory &targets, const std::string &what) const {
    std::vector<char> made(images.size()), made_targets(targets.size());
    check_cuda(cuda_driver().cuMemcpyDtoH_v2(made.data(), images.address(), images.size()), "superpose on the GPU");
    check_cuda(cuda_driver().cuMemcpyDtoH_v2(made_targets.data(), targets.address(), targets.size()),
               "superpose on the GPU");
    for (size_t i = 0; i < plans_.size(); i++) {
      compare_image(made, i, what);
      compare_target(made_targets, i, what);
    }
  }

  const Case &c_;
  const std::vector<int64_t> labels_;
  const ClassIndex classes_;
  const std::vector<uint8_t> pixels_;
  const std::vector<Id> ids_;
  const WeightSeries series_;
  PlanOptions options_;
  Output output_;
  std::vector<std::vector<Constituent>> plans_;
};

}  // namespace

std::string check_gpu() {
  for (const Case &one : kCases) Comparison(one).compare();
  return "plans equal the CPU's, images are within 2e-6 of sums in double precision, for up to 1000 classes";
}

}  // namespace fdt
