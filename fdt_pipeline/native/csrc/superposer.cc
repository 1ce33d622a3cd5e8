#include "superposer.h"

#include <cstring>

namespace fdt {
namespace {

// Plans drawn before their images are summed, so that these can be fetched ahead: 4,096 sources are 100 kB.
constexpr size_t kDrawnAhead = 4096;

void write_target(const Plan &plan, Targets targets, uint32_t num_classes, void *target) {
  if (targets == Targets::kLabel) {
    const int64_t label = plan.heaviest().label;
    std::memcpy(target, &label, sizeof label);
    return;
  }
  float *row = static_cast<float *>(target);
  std::memset(row, 0, num_classes * sizeof(float));
  if (targets == Targets::kDominant)
    row[plan.heaviest().label] = 1;
  else
    for (const Constituent &c : plan.images) row[c.label] += c.weight;
  if (plan.branch->label_smoothing > 0) {
    const Smoothing smooth(plan.branch->label_smoothing, num_classes);
    for (uint32_t i = 0; i < num_classes; i++) row[i] = smooth(row[i]);
  }
}

}  // namespace

void add_output(uint32_t epoch, uint32_t index, std::vector<Span> &spans) {
  if (!spans.empty() && spans.back().epoch == epoch && uint64_t{spans.back().first} + spans.back().count == index)
    spans.back().count++;
  else
    spans.push_back({epoch, index, 1, 0});
}

std::vector<Id> Asked::ids() const {
  std::vector<Id> ids;
  for (const Span &span : spans)
    for (uint32_t i = 0; i < span.count; i++) {
      const size_t index = span.index(i), at = leads == Leads::kByIndex ? index : ids.size();
      const int64_t leader = static_cast<int64_t>(order.empty() ? at : order[at]);
      ids.push_back({span.epoch, static_cast<uint32_t>(index), leads == Leads::kDrawn ? -1 : leader});
    }
  return ids;
}

void Superposer::reset(const Pool &pool, const PlanOptions &options) {
  drawer_.reset(options, pool.classes, pool.shape());
  if (!space_ || !(space_->shape == pool.shape()) || space_->pad != options.pad)
    space_ = std::make_unique<Workspace>(pool.shape(), options.pad);
}

// Images are summed in the order of their vertical shifts, those that are mirrored last: those of one pass then lack
// the same rows, which took 1.2 times as long in the order of the plan.
void Superposer::draw(const Pool &pool, const MixWeights &weights, Targets targets, const Id &id, void *target) {
  drawer_.draw(id, weights, plan_);
  const std::vector<Constituent> &images = plan_.images;
  const bool has_box = plan_.box.area() > 0;
  const size_t k = images.size();
  const int32_t pad = static_cast<int32_t>(space_->pad);
  const size_t shifts = 2 * static_cast<size_t>(pad) + 1, before = sources_.size();
  const auto kind = [&](const Constituent &c) { return static_cast<size_t>(c.dy) + (c.flip ? shifts : 0); };
  places_.assign(2 * shifts + 1, 0);
  for (const Constituent &c : images) places_[kind(c) + 1]++;
  for (size_t i = 1; i <= 2 * shifts; i++) places_[i] += places_[i - 1];
  drawn_.push_back({static_cast<int64_t>(k), plan_.box});
  sources_.resize(before + k);
  for (size_t i = 0; i < k; i++) {
    const Constituent &c = images[i];
    const Part part = !has_box ? Part::kAll : i == 0 ? Part::kOutside : Part::kInside;
    sources_[before + places_[kind(c)]++] = {pool.image(c.image), c.dy - pad, c.dx - pad, has_box ? 1 : c.weight,
                                             c.flip, part};
  }
  write_target(plan_, targets, pool.classes.num_classes, target);
}

void Superposer::run(const Pool &pool, const MixWeights &weights, const Output &output, Targets kind, const Id *ids,
                     int64_t first, int64_t last, void *const *images, void *const *targets) {
  const auto superpose = kernels().superpose;
  for (int64_t at = first; at < last;) {
    sources_.clear();
    drawn_.clear();
    int64_t end = at;
    while (end < last && sources_.size() < kDrawnAhead) {
      draw(pool, weights, kind, ids[end], targets[end]);
      end++;
    }
    int64_t used = 0, total = static_cast<int64_t>(sources_.size());
    for (; at < end; at++) {
      const auto &[k, box] = drawn_[drawn_.size() - static_cast<size_t>(end - at)];
      superpose(*space_, output, &sources_[static_cast<size_t>(used)], k, total - used - k, box, images[at]);
      used += k;
    }
  }
}

}  // namespace fdt
