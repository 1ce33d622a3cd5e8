// Plans and sums together: outputs of a batch on the CPU.
#ifndef FDT_SUPERPOSER_H_
#define FDT_SUPERPOSER_H_

#include <memory>
#include <vector>

#include "kernel.h"
#include "plan.h"
#include "pool.h"
#include "superpose.h"

namespace fdt {

// One thread's worth of it: what it needs is kept from batch to batch.
class Superposer {
 public:
  // The pool must outlive it. `series` must have weights for sums of options.highest(pool.classes) images.
  void reset(const Pool &pool, const PlanOptions &options);
  // Output i of first .. last - 1 begins at images[i], and its target at targets[i].
  void run(const Pool &pool, const WeightSeries &series, const Output &output, Targets kind, const Id *ids,
           int64_t first, int64_t last, void *const *images, void *const *targets);

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
