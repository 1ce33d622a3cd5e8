// Plans and sums together: outputs of a batch on the CPU.
#ifndef FDT_SUPERPOSER_H_
#define FDT_SUPERPOSER_H_

#include <memory>
#include <vector>

#include "kernel.h"
#include "plan.h"
#include "pool.h"

namespace fdt {

enum class Targets {
  kSoft,      // f32[num_classes], the weights
  kDominant,  // f32[num_classes], one-hot of the first image's class
  kLabel,     // i64, the first image's class
};

// Where a batch goes: output i begins at images[i] and targets[i].
struct Batch {
  void *const *images;
  void *const *targets;
};

// One thread's worth of it: what it needs is kept from batch to batch.
class Superposer {
 public:
  // The pool must outlive it. `series` must have weights for sums of options.highest(pool.classes) images.
  void reset(const Pool &pool, const PlanOptions &options);
  void run(const Pool &pool, const WeightSeries &series, const Output &output, Targets targets, const Id *ids,
           int64_t first, int64_t last, const Batch &batch);

 private:
  void draw(const Pool &pool, const WeightSeries &series, Targets targets, const Id &id, void *target);

  PlanDrawer drawer_;
  std::unique_ptr<Workspace> space_;
  std::vector<Constituent> plan_;
  std::vector<Source> sources_;
  std::vector<uint32_t> places_;
  std::vector<int64_t> drawn_;  // K of each output
};

}  // namespace fdt

#endif  // FDT_SUPERPOSER_H_
