// What the DALI operators are asked for, checked as far as it can be without images.
#ifndef FDT_OPERATOR_ARGUMENTS_H_
#define FDT_OPERATOR_ARGUMENTS_H_

#pragma GCC diagnostic ignored "-Wfree-nonheap-object"  // what GCC 12 makes of DALI's SmallVector

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dali/pipeline/operator/operator.h"
#include "kernel.h"
#include "plan.h"
#include "superposer.h"

namespace fdt_operators {

using namespace ::dali;  // NOLINT: the names of types moved between namespaces of DALI

using fdt::ClassIndex;
using fdt::Id;
using fdt::Leads;
using fdt::Output;
using fdt::PlanOptions;
using fdt::Pool;
using fdt::Shape;
using fdt::Span;
using fdt::Targets;

// What is wrong, in words alone: DALI's own macro would put the condition's text before them.
template <typename... Parts>
[[noreturn]] void refuse(const Parts &...parts) {
  throw std::invalid_argument(make_string(parts...));
}

template <typename... Parts>
void require(bool fine, const Parts &...parts) {
  if (!fine) refuse(parts...);
}

template <typename T>
T one_of(const OpSpec &spec, const std::string &name, const std::map<std::string, T> &choices) {
  const auto asked = spec.GetArgument<std::string>(name);
  const auto found = choices.find(asked);
  if (found != choices.end()) return found->second;
  std::string all;
  for (const auto &choice : choices) all += (all.empty() ? "\"" : ", \"") + choice.first + "\"";
  refuse(name, " must be one of ", all, ", got \"", asked, "\"");
}

int64_t at_least(const OpSpec &spec, const std::string &name, int64_t least) {
  const auto value = spec.GetArgument<int64_t>(name);
  require(value >= least, name, " must be ", least, " or more, got ", value);
  return value;
}

// Refuses fractions that are meant for pixels in 0..1, such as ImageNet's. 0 and 1 alone leave pixels as they are.
void check_pixel_range(const std::vector<float> &mean, const std::vector<float> &std) {
  bool has_fraction = false;
  std::string meant;
  for (const auto &given : {std::make_pair("mean", &mean), std::make_pair("std", &std)}) {
    const auto &values = *given.second;
    if (!std::all_of(values.begin(), values.end(), [](float x) { return x >= 0 && x <= 1; })) continue;
    meant += make_string(meant.empty() ? "" : ", ", given.first, "=[");
    for (size_t i = 0; i < values.size(); i++) {
      has_fraction |= values[i] > 0 && values[i] < 1;
      meant += make_string(i ? ", " : "", 255 * values[i]);
    }
    meant += "]";
  }
  require(!has_fraction, "mean and std are in units of 0..255, got values of 0..1: multiply by 255: ", meant);
}

struct Arguments {
  explicit Arguments(const OpSpec &spec)
      : has_plan_seed(spec.HasArgument("plan_seed")),
        targets(one_of<Targets>(
            spec, "targets", {{"soft", Targets::kSoft}, {"dominant", Targets::kDominant}, {"label", Targets::kLabel}})),
        mean(spec.GetRepeatedArgument<float>("mean")),
        std(spec.GetRepeatedArgument<float>("std")),
        channels(at_least(spec, "channels", 0)),
        dtype(spec.GetArgument<DALIDataType>("dtype")),
        layout(spec.GetArgument<std::string>("output_layout")) {
    fdt::kernels();  // throws where $FDT_PIPELINE_ISA is wrong, and now, not with the first batch
    plans.seed = static_cast<uint64_t>(spec.GetArgument<int64_t>(has_plan_seed ? "plan_seed" : "seed"));
    plans.branches = fdt::read_mix(spec.GetArgument<std::string>("mix"));
    const auto pad = at_least(spec, "pad", 0);
    require(pad <= 32767, "pad must be 32767 or less, got ", pad);
    plans.pad = static_cast<uint32_t>(pad);
    plans.flip = spec.GetArgument<bool>("flip");
    require(dtype == DALI_FLOAT || dtype == DALI_FLOAT16, "dtype must be FLOAT or FLOAT16: cast other types after");
    require(layout == "CHW" || layout == "HWC", "output_layout must be \"CHW\" or \"HWC\", got \"", layout, "\"");
    for (float value : mean) require(std::isfinite(value), "mean must be finite, got ", value);
    for (float value : std) require(value > 0 && std::isfinite(value), "std must be finite and above 0, got ", value);
    check_pixel_range(mean, std);
  }

  // How images of so many channels are written.
  Output output(int64_t stored) const {
    require(stored >= 1 && stored <= fdt::kMostChannels, "images must have 1 to 4 channels, got ", stored);
    const int64_t n = channels ? channels : stored;
    require(n == stored || (stored == 1 && n <= fdt::kMostChannels), "channels=", n, ", but the images have ", stored,
            ": only gray ones can be repeated, up to 4 times");
    Output result;
    result.channels = static_cast<int>(n);
    result.half = dtype == DALI_FLOAT16;
    result.hwc = layout == "HWC";
    fill("mean", mean, n, result.mean);
    fill("std", std, n, result.inv_std);
    for (int64_t i = 0; i < n; i++) result.inv_std[i] = 1 / result.inv_std[i];
    return result;
  }

  void check_classes(int64_t num_classes) const {
    require(num_classes >= 1 && num_classes <= fdt::kMostClasses, "num_classes must be in [1, ", fdt::kMostClasses,
            "], got ", num_classes);
    for (const fdt::Branch &branch : plans.branches)
      for (const auto &given :
           {std::make_pair("min_images", branch.min_images), std::make_pair("max_images", branch.max_images)})
        require(!branch.unique || branch.kind != fdt::Kind::kSum || given.second <= num_classes, given.first, " ",
                given.second, " is over the number of classes, ", num_classes, ": each may be used once");
  }

  bool has_plan_seed;  // else plans.seed is DALI's own
  PlanOptions plans;
  Targets targets;
  std::vector<float> mean, std;
  int64_t channels;
  DALIDataType dtype;
  std::string layout;

 private:
  static void fill(const char *name, const std::vector<float> &given, int64_t n, float *values) {
    require(given.size() == 1 || static_cast<int64_t>(given.size()) == n, name, " must be one number or ", n,
            " of them, got ", given.size());
    for (int64_t i = 0; i < n; i++) values[i] = given[given.size() == 1 ? 0 : static_cast<size_t>(i)];
  }
};

}  // namespace fdt_operators

#endif  // FDT_OPERATOR_ARGUMENTS_H_
