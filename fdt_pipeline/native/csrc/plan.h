// Which images an output is made of: Algorithm 2 of the paper, decided in integers, bit for bit as
// fdt_pipeline/definition/superposition.py (draw_plan) decides it.
#ifndef FDT_PLAN_H_
#define FDT_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernel.h"
#include "mixing.h"

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

// What an output is where the random 32-bit word that decides is below `end`, and not below that of the branch before:
// mixed if it is below mixed_end, or else one whole image.
struct Branch {
  Kind kind = Kind::kSum;
  uint64_t mixed_end = uint64_t{1} << 32, end = uint64_t{1} << 32;
  bool led = false;    // its first image is the output's leader, where it has one
  bool unique = true;  // its images are of pairwise different classes
  double label_smoothing = 0;
  uint32_t min_images = 1;
  uint32_t max_images = 0;            // 0: the number of classes at hand
  std::string weights = "harmonic";  // what WeightSeries takes; or the quantiles of lambda

  // The range of K where so many classes have an image.
  uint32_t lowest(uint32_t num_distinct) const;
  uint32_t highest(uint32_t num_distinct) const;
};

// What native/arguments.py (mix_argument) makes of a mixing, or "fdt", the paper's. std::invalid_argument for anything else.
std::vector<Branch> read_mix(const std::string &text);

struct PlanOptions {
  uint64_t seed = 0;
  std::vector<Branch> branches;  // 1 to kMostBranches, of rising ends, the last one 2^32
  uint32_t pad = 0;
  bool flip = false;

  bool is_led() const;  // in one of the branches
  // The most images of an output, and how many they are about on average.
  uint32_t highest(uint32_t num_distinct) const;
  uint32_t typical(uint32_t num_distinct) const;
};

// One image of an output. It is cropped at (dy, dx) of the image with a frame of `pad` zeros, then mirrored if `flip`.
struct Constituent {
  uint32_t image;
  uint32_t label;
  int32_t dy, dx;  // 0 .. 2 * pad
  bool flip;
  float weight;  // in the target, and where there is no box in the sum
};

struct Plan {
  std::vector<Constituent> images;
  Box box{};  // inside of it the second image is shown, outside the first
  const Branch *branch = nullptr;
  // The image with the largest weight, the first of several.
  const Constituent &heaviest() const;
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

// The weights of all branches, for plans from images of up to so many classes.
class MixWeights {
 public:
  MixWeights(const std::vector<Branch> &branches, uint32_t num_distinct);
  struct Of {
    WeightSeries series;              // of kSum
    std::vector<uint32_t> quantiles;  // of lambda, in kLambdaUnit, of the others
  };
  const Of &operator[](size_t branch) const { return of_[branch]; }
  size_t size() const { return of_.size(); }

 private:
  std::vector<Of> of_;
};

// What an output is drawn from beside the seed.
struct Id {
  uint32_t epoch = 0;
  uint32_t index = 0;
  int64_t leader = -1;  // the pool position of the first image in branches that are led, or -1 where none is
};

// Draws plans, one after the other. It keeps sums of unused images between them, so a thread needs its own.
class PlanDrawer {
 public:
  // Of images of this shape.
  void reset(const PlanOptions &options, const ClassIndex &classes, const Shape &shape);
  void draw(const Id &id, const MixWeights &weights, Plan &plan);

 private:
  void draw_classes(const Id &id, bool led, bool unique, uint32_t k, const uint32_t *words, uint32_t stride);
  void weigh(const uint32_t (&first)[4], const MixWeights::Of &weights, Plan &plan) const;
  void put_back(uint32_t k);

  PlanOptions options_;
  const ClassIndex *classes_ = nullptr;
  Shape shape_;
  uint32_t highest_ = 1;
  ClassSums sums_{};
  std::vector<uint32_t> memory_, untouched_;  // of sums_; as it is when nothing is used
  std::vector<uint32_t> words_, labels_, ranks_;  // ranks_: within the class
};

// i64[n]: the samples in the order in which they lead the outputs of an epoch (superposition.py, epoch_order).
std::vector<int64_t> epoch_order(uint64_t seed, uint32_t epoch, size_t n);

}  // namespace fdt

#endif  // FDT_PLAN_H_
