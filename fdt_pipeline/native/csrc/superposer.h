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

// The outputs of a batch, and the images that lead them.
struct Asked {
  std::vector<Span> spans;
  Leads leads = Leads::kDrawn;
  std::vector<uint32_t> order;  // for leads, or empty: image i is the i-th
  uint64_t order_version = 0;   // a new one whenever `order` changes
  std::vector<Id> ids() const;  // of every output
};

// One more output, in the last span where it follows on that.
void add_output(uint32_t epoch, uint32_t index, std::vector<Span> &spans);

// One thread's worth of it: what it needs is kept from batch to batch.
class Superposer {
 public:
  // The pool must outlive it. `weights` must be of options.branches, for the pool's classes.
  void reset(const Pool &pool, const PlanOptions &options);
  // Output i of first .. last - 1 begins at images[i], and its target at targets[i].
  void run(const Pool &pool, const MixWeights &weights, const Output &output, Targets kind, const Id *ids,
           int64_t first, int64_t last, void *const *images, void *const *targets);

 private:
  void draw(const Pool &pool, const MixWeights &weights, Targets targets, const Id &id, void *target);

  struct Drawn {
    int64_t k;
    Box box;
  };

  PlanDrawer drawer_;
  std::unique_ptr<Workspace> space_;
  Plan plan_;
  std::vector<Source> sources_;
  std::vector<uint32_t> places_;
  std::vector<Drawn> drawn_;  // of each output
};

}  // namespace fdt

#endif  // FDT_SUPERPOSER_H_
