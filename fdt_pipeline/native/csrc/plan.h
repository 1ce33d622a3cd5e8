// Which images an output is made of: Algorithm 2 of the paper, decided in integers, bit for bit as
// fdt_pipeline/definition/superposition.py (draw_plan) decides it.
#ifndef FDT_PLAN_H_
#define FDT_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernel.h"

namespace fdt {

// Text of an argument or a file for an error: up to 40 characters; what is not printable ASCII becomes '?'.
std::string printable(std::string text);

constexpr uint32_t kMostClasses = 65536;

// The images of a pool by their class.
struct ClassIndex {
  uint32_t num_classes = 0;
  uint32_t num_distinct = 0;       // classes that have an image
  std::vector<uint32_t> labels;    // [n]
  std::vector<uint32_t> counts;    // [num_classes] images of each class
  std::vector<uint32_t> starts;    // [num_classes] where each class begins in by_class
  std::vector<uint32_t> by_class;  // [n] images, class after class, in ascending order within one

  // std::invalid_argument where a label is outside [0, num_classes); it names the sample.
  void assign(const int64_t *labels, size_t n, uint32_t num_classes);
  size_t size() const { return labels.size(); }
};

struct PlanOptions {
  uint64_t seed = 0;
  uint32_t min_images = 1;
  uint32_t max_images = 0;                     // 0: the number of classes
  uint64_t mix_threshold = uint64_t{1} << 32;  // an output is mixed if a random 32-bit word is below it
  uint32_t pad = 0;
  bool flip = false;

  // The range of K that these images can give: cut to the number of classes that have one.
  uint32_t lowest(const ClassIndex &classes) const;
  uint32_t highest(const ClassIndex &classes) const;
};

// One image of a sum. It is cropped at (dy, dx) of the image with a frame of `pad` zeros, then mirrored if `flip`.
struct Constituent {
  uint32_t image;
  uint32_t label;
  int32_t dy, dx;  // 0 .. 2 * pad
  bool flip;
};

// The weights F_1..F_k of a sum of k images, k <= most.
class WeightSeries {
 public:
  // "harmonic", or what native/arguments.py makes of any series: "terms:" and "table:" with hexadecimal numbers.
  // std::invalid_argument for anything else, or if it gives no weights for sums of `most` images.
  WeightSeries(const std::string &text, uint32_t most);
  float operator()(uint32_t k, uint32_t i) const {  // 1 <= k <= most, 0 <= i < k
    return table_.empty() ? static_cast<float>(terms_[i] / sums_[k - 1]) : table_[size_t{k} * (k - 1) / 2 + i];
  }
  const std::vector<double> &terms() const { return terms_; }
  const std::vector<double> &sums() const { return sums_; }
  const std::vector<float> &table() const { return table_; }

 private:
  std::vector<double> terms_, sums_;  // F_i(k) = terms[i - 1] / sums[k - 1]
  std::vector<float> table_;          // or row after row: F_1(1), F_1(2), F_2(2), ...
};

// What an output is drawn from beside the seed.
struct Id {
  uint32_t epoch = 0;
  uint32_t index = 0;
  int64_t leader = -1;  // the pool position of the first image, or -1 where that is drawn too
};

// Draws plans, one after the other. It keeps sums of unused images between them, so a thread needs its own.
class PlanDrawer {
 public:
  void reset(const PlanOptions &options, const ClassIndex &classes);
  // Appends the constituents of an output to `plan` and returns their number, K.
  uint32_t draw(const Id &id, std::vector<Constituent> &plan);

 private:
  void put_back(uint32_t k);

  PlanOptions options_;
  const ClassIndex *classes_ = nullptr;
  uint32_t lowest_ = 1, highest_ = 1;
  ClassSums sums_{};
  std::vector<uint32_t> memory_, untouched_;  // of sums_; as it is when nothing is used
  std::vector<uint32_t> words_, labels_, ranks_;
};

// i64[n]: the samples in the order in which they lead the outputs of an epoch (superposition.py, epoch_order).
std::vector<int64_t> epoch_order(uint64_t seed, uint32_t epoch, size_t n);

}  // namespace fdt

#endif  // FDT_PLAN_H_
