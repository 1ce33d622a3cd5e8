// The DALI operators fn.fdt.superpose and fn.fdt.superpose_resident: their documentation, their arguments, and how
// batches come and go. The one file that sees DALI; written so that it compiles against 1.34 as well as 2.x.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#pragma GCC diagnostic ignored "-Wfree-nonheap-object"  // what GCC 12 makes of DALI's SmallVector

#include "dali/pipeline/operator/checkpointing/op_checkpoint.h"
#include "dali/pipeline/operator/operator.h"
#include "gpu.h"
#include "kernel.h"
#include "plan.h"
#include "pool.h"
#include "superposer.h"
#include "text.h"

namespace fdt_operators {

using namespace ::dali;  // NOLINT: the names of types moved between namespaces of DALI

using fdt::ClassIndex;
using fdt::Id;
using fdt::Output;
using fdt::PlanOptions;
using fdt::Pool;
using fdt::Shape;
using fdt::Targets;

enum class Anchor { kRandom, kEpoch, kIndex };

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

// What both operators are asked for, checked as far as it can be without images.
struct Arguments {
  explicit Arguments(const OpSpec &spec)
      : targets(one_of<Targets>(
            spec, "targets", {{"soft", Targets::kSoft}, {"dominant", Targets::kDominant}, {"label", Targets::kLabel}})),
        series(spec.GetArgument<std::string>("series")),
        mean(spec.GetRepeatedArgument<float>("mean")),
        std(spec.GetRepeatedArgument<float>("std")),
        channels(at_least(spec, "channels", 0)),
        dtype(spec.GetArgument<DALIDataType>("dtype")),
        layout(spec.GetArgument<std::string>("output_layout")) {
    plans.seed = static_cast<uint64_t>(spec.GetArgument<int64_t>("plan_seed"));
    plans.min_images = static_cast<uint32_t>(std::min<int64_t>(at_least(spec, "min_images", 1), fdt::kMostClasses));
    plans.max_images = static_cast<uint32_t>(std::min<int64_t>(at_least(spec, "max_images", 0), fdt::kMostClasses));
    require(!plans.max_images || plans.max_images >= plans.min_images, "max_images ", plans.max_images,
            " must not be below min_images ", plans.min_images);
    const auto probability = spec.GetArgument<float>("probability");
    require(probability >= 0 && probability <= 1, "probability must be in [0, 1], got ", probability);
    const auto threshold = spec.GetArgument<int64_t>("mix_threshold");
    require(threshold >= -1 && threshold <= (int64_t{1} << 32), "mix_threshold must be in [0, 2^32], got ", threshold);
    // The shortest decimal that is this float: 0.3 is then mixed as Python's 0.3 is.
    plans.mix_threshold = threshold >= 0 ? static_cast<uint64_t>(threshold)
                                         : static_cast<uint64_t>(std::nearbyint(
                                               std::strtod(make_string(probability).c_str(), nullptr) * 4294967296.0));
    const auto pad = at_least(spec, "pad", 0);
    require(pad <= 32767, "pad must be 32767 or less, got ", pad);
    plans.pad = static_cast<uint32_t>(pad);
    plans.flip = spec.GetArgument<bool>("flip");
    require(dtype == DALI_FLOAT || dtype == DALI_FLOAT16, "dtype must be FLOAT or FLOAT16: cast other types after");
    require(layout == "CHW" || layout == "HWC", "output_layout must be \"CHW\" or \"HWC\", got \"", layout, "\"");
    for (float value : mean) require(std::isfinite(value), "mean must be finite, got ", value);
    for (float value : std) require(value > 0 && std::isfinite(value), "std must be finite and above 0, got ", value);
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
    for (const auto &given :
         {std::make_pair("min_images", plans.min_images), std::make_pair("max_images", plans.max_images)})
      require(given.second <= num_classes, given.first, " ", given.second, " is over the number of classes, ",
              num_classes, ": each may be used once");
  }

  uint32_t most_images(int64_t num_classes) const {
    return plans.max_images ? plans.max_images : static_cast<uint32_t>(num_classes);
  }

  PlanOptions plans;
  Targets targets;
  std::string series;
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

std::vector<OutputDesc> describe(int n, const Shape &shape, const Output &output, const Arguments &arguments,
                                 int64_t num_classes) {
  const int64_t c = output.channels;
  const TensorShape<> image = output.hwc ? TensorShape<>{shape.h, shape.w, c} : TensorShape<>{c, shape.h, shape.w};
  const bool labels = arguments.targets == Targets::kLabel;
  const TensorShape<> target = labels ? TensorShape<>{} : TensorShape<>{num_classes};
  return {{uniform_list_shape(n, image), arguments.dtype},
          {uniform_list_shape(n, target), labels ? DALI_INT64 : DALI_FLOAT}};
}

// (epoch, index) of every sample.
void read_ids(const TensorList<CPUBackend> &from, std::vector<Id> &ids) {
  require(from.type() == DALI_INT64, "ids must be int64, got ", from.type());
  ids.resize(static_cast<size_t>(from.num_samples()));
  for (int i = 0; i < from.num_samples(); i++) {
    const auto shape = from.tensor_shape(i);
    require(volume(shape) == 2, "ids must be (epoch, index) pairs of shape (2,), got shape ", shape, " for sample ", i);
    const int64_t *pair = static_cast<const int64_t *>(from.raw_tensor(i));
    require(pair[0] >= 0 && pair[0] < (int64_t{1} << 32) && pair[1] < (int64_t{1} << 32),
            "ids must be (epoch, index) with 0 <= epoch < 2^32 and index < 2^32, got (", pair[0], ", ", pair[1],
            ") for sample ", i);
    ids[static_cast<size_t>(i)] = {static_cast<uint32_t>(pair[0]), pair[1], -1};
  }
}

int64_t read_label(const TensorList<CPUBackend> &from, int i) {
  const auto shape = from.tensor_shape(i);
  const void *data = from.raw_tensor(i);
  if (from.type() == DALI_UINT8 && shape.sample_dim() == 1) {  // as readers.webdataset gives a .cls member
    const std::string digits(static_cast<const char *>(data), static_cast<size_t>(volume(shape)));
    require(!digits.empty() && digits.size() < 10 && digits.find_first_not_of("0123456789") == std::string::npos,
            "label of sample ", i, ": a .cls member holds \"", fdt::printable(digits), "\", expected a class number");
    return std::stoll(digits);
  }
  require(volume(shape) == 1, "labels must be one number a sample, got shape ", shape, " for sample ", i);
  switch (from.type()) {
    case DALI_UINT8:
      return *static_cast<const uint8_t *>(data);
    case DALI_INT16:
      return *static_cast<const int16_t *>(data);
    case DALI_INT32:
      return *static_cast<const int32_t *>(data);
    case DALI_INT64:
      return *static_cast<const int64_t *>(data);
    default:
      refuse("labels must be int64, int32, int16, uint8, or ASCII digits (uint8 of shape (n,)), got ", from.type());
  }
}

void read_labels(const TensorList<CPUBackend> &from, int64_t num_classes, std::vector<int64_t> &labels) {
  labels.resize(static_cast<size_t>(from.num_samples()));
  for (int i = 0; i < from.num_samples(); i++) {
    const int64_t label = labels[static_cast<size_t>(i)] = read_label(from, i);
    require(label >= 0 && label < num_classes, "label ", label, " of sample ", i, " is outside [0, ", num_classes,
            "): check num_classes");
  }
}

// The one shape of the images of a window, u8[h w c] or u8[h w].
template <typename Backend>
Shape window_shape(const TensorList<Backend> &images) {
  require(images.type() == DALI_UINT8, "images must be uint8, got ", images.type(), ": superpose before normalizing");
  const auto first = images.tensor_shape(0);
  require(first.sample_dim() == 3 || first.sample_dim() == 2, "images must be [h w c] or [h w], got shape ", first);
  for (int i = 1; i < images.num_samples(); i++)
    require(images.tensor_shape(i) == first, "images of one mix window must have one shape, got ", first,
            " (sample 0) and ", images.tensor_shape(i), " (sample ", i, "): resize them first");
  const Shape shape{first[0], first[1], first.sample_dim() == 3 ? first[2] : 1};
  require(shape.size() > 0 && shape.size() < (int64_t{1} << 31),
          "images must have pixels, and less than 2^31 bytes, got shape ", first);
  return shape;
}

// Leaders of an epoch, kept for the epoch that they were last asked for.
class EpochOrder {
 public:
  void lead(uint64_t seed, size_t n, std::vector<Id> &ids) {
    for (Id &id : ids) {
      if (id.index < 0) continue;
      require(static_cast<size_t>(id.index) < n, "anchor \"epoch\": index ", id.index,
              " is not below the number of images, ", n);
      if (order_.size() != n || id.epoch != epoch_) order_ = fdt::epoch_order(seed, epoch_ = id.epoch, n);
      id.leader = order_[static_cast<size_t>(id.index)];
    }
  }

 private:
  uint32_t epoch_ = 0;
  std::vector<int64_t> order_;
};

void set_leaders(Anchor anchor, uint64_t seed, size_t n, EpochOrder &order, std::vector<Id> &ids) {
  if (anchor == Anchor::kEpoch) order.lead(seed, n, ids);
  if (anchor != Anchor::kIndex) return;
  for (Id &id : ids) {
    require(id.index < static_cast<int64_t>(n), "anchor \"index\": index ", id.index,
            " is not below the number of images, ", n);
    id.leader = id.index;
  }
}

// work(part, thread) for every part, on DALI's threads; on this one if there is but one.
template <typename Work>
void share_out(::dali::Workspace &ws, int64_t num_parts, Work work) {
  if (num_parts == 1) return work(int64_t{0}, 0);
  auto &threads = ws.GetThreadPool();
  for (int64_t part = 0; part < num_parts; part++) threads.AddWork([=](int thread) { work(part, thread); }, -part);
  threads.RunAll();
}

// Parts of a batch: some for each thread, so that one that comes late leaves little to wait for.
int64_t num_parts(int64_t n, int num_threads) { return num_threads == 1 ? 1 : std::min<int64_t>(n, 4 * num_threads); }

// Superposers of the threads, and a batch through them.
class CpuSuperposers {
 public:
  void run(::dali::Workspace &ws, const Pool &pool, const Arguments &arguments, const fdt::WeightSeries &series,
           const Output &output, const std::vector<Id> &ids, bool new_pool) {
    const int num_threads = ws.GetThreadPool().NumThreads();
    if (new_pool || superposers_.empty()) {
      superposers_.resize(static_cast<size_t>(num_threads));
      for (auto &superposer : superposers_) superposer.reset(pool, arguments.plans);
    }
    auto &images = ws.Output<CPUBackend>(0);
    auto &targets = ws.Output<CPUBackend>(1);
    const auto n = static_cast<int64_t>(ids.size());
    image_at_.resize(ids.size());
    target_at_.resize(ids.size());
    for (int i = 0; i < n; i++) {
      image_at_[static_cast<size_t>(i)] = images.raw_mutable_tensor(i);
      target_at_[static_cast<size_t>(i)] = targets.raw_mutable_tensor(i);
    }
    const int64_t parts = num_parts(n, num_threads);
    share_out(ws, parts, [&, n, parts](int64_t part, int thread) {
      superposers_[static_cast<size_t>(thread)].run(pool, series, output, arguments.targets, ids.data(),
                                                    n * part / parts, n * (part + 1) / parts,
                                                    {image_at_.data(), target_at_.data()});
    });
    images.SetLayout(TensorLayout(arguments.layout));
  }

 private:
  std::vector<fdt::Superposer> superposers_;
  std::vector<void *> image_at_, target_at_;
};

// Where a batch goes on the GPU: one piece of memory an output.
void *whole_output(::dali::Workspace &ws, int i) {
  auto &output = ws.Output<GPUBackend>(i);
  require(output.IsContiguous(), "expected DALI to give outputs in one piece of memory");
  return output.raw_mutable_tensor(0);
}

// A number that counts samples, saved with DALI's checkpoints.
template <typename Backend>
class Counting : public Operator<Backend> {
 public:
  explicit Counting(const OpSpec &spec) : Operator<Backend>(spec) {}
  bool CanInferOutputs() const { return true; }  // of DALI before 1.42
  void SaveState(OpCheckpoint &checkpoint, AccessOrder) override { checkpoint.MutableCheckpointState() = counted_; }
  void RestoreState(const OpCheckpoint &checkpoint) override { counted_ = checkpoint.CheckpointState<uint64_t>(); }
  std::string SerializeCheckpoint(const OpCheckpoint &checkpoint) const override {
    return std::to_string(checkpoint.CheckpointState<uint64_t>());
  }
  void DeserializeCheckpoint(OpCheckpoint &checkpoint, const std::string &data) const override {
    checkpoint.MutableCheckpointState() = static_cast<uint64_t>(std::stoull(data));
  }

 protected:
  uint64_t counted_ = 0;
};

template <typename Backend>
class Superpose : public Counting<Backend> {
 public:
  explicit Superpose(const OpSpec &spec)
      : Counting<Backend>(spec),
        arguments_(spec),
        anchor_(one_of<Anchor>(spec, "anchor", {{"random", Anchor::kRandom}, {"epoch", Anchor::kEpoch}})),
        num_classes_(spec.GetArgument<int64_t>("num_classes")),
        series_(arguments_.series, most_images(spec)) {
    arguments_.check_classes(num_classes_);
  }

 protected:
  bool SetupImpl(std::vector<OutputDesc> &outputs, const ::dali::Workspace &ws) override {
    const auto &images = ws.Input<Backend>(0);
    shape_ = window_shape(images);
    output_ = arguments_.output(shape_.c);
    outputs = describe(images.num_samples(), shape_, output_, arguments_, num_classes_);
    return true;
  }

  void RunImpl(::dali::Workspace &ws) override {
    read_labels(ws.Input<CPUBackend>(1), num_classes_, labels_);
    number(ws);
    keep_real_samples();
    superpose(ws);
    counted_ += ids_.size();
  }

 private:
  using Counting<Backend>::counted_;

  uint32_t most_images(const OpSpec &spec) const {
    arguments_.check_classes(num_classes_);
    return std::min(arguments_.most_images(num_classes_),
                    static_cast<uint32_t>(spec.GetArgument<int>("max_batch_size")));
  }

  void number(const ::dali::Workspace &ws) {
    if (ws.NumInput() > 2) return read_ids(ws.Input<CPUBackend>(2), ids_);
    ids_.resize(labels_.size());
    for (size_t i = 0; i < ids_.size(); i++) {
      const uint64_t at = counted_ + i;
      ids_[i] = {static_cast<uint32_t>(at >> 32), static_cast<int64_t>(at & 0xFFFFFFFF), -1};
    }
  }

  // Padding is not mixed. An image leads the output in its own place.
  void keep_real_samples() {
    kept_.clear();
    kept_labels_.clear();
    for (size_t i = 0; i < ids_.size(); i++) {
      if (ids_[i].index < 0) continue;
      ids_[i].leader = anchor_ == Anchor::kEpoch ? static_cast<int64_t>(kept_.size()) : -1;
      kept_.push_back(static_cast<int>(i));
      kept_labels_.push_back(labels_[i]);
    }
    if (kept_.empty()) {  // a batch of padding alone: one image, which no output uses
      kept_.push_back(0);
      kept_labels_.push_back(labels_[0]);
    }
  }

  void superpose(::dali::Workspace &ws);

  Arguments arguments_;
  Anchor anchor_;
  int64_t num_classes_;
  fdt::WeightSeries series_;
  Shape shape_;
  Output output_;
  std::vector<Id> ids_;
  std::vector<int64_t> labels_, kept_labels_;
  std::vector<int> kept_;
  Pool window_{0, {}, 0};
  CpuSuperposers on_cpu_;
  ClassIndex classes_;
  std::vector<const uint8_t *> pixels_;
  std::unique_ptr<fdt::GpuSuperpose> on_gpu_;
};

template <>
void Superpose<CPUBackend>::superpose(::dali::Workspace &ws) {
  const auto &images = ws.Input<CPUBackend>(0);
  const auto n = static_cast<int64_t>(kept_.size());
  window_.resize(kept_.size(), shape_, arguments_.plans.pad);
  window_.classes.assign(kept_labels_.data(), kept_labels_.size(), static_cast<uint32_t>(num_classes_));
  const int64_t parts = num_parts(n, ws.GetThreadPool().NumThreads());
  share_out(ws, parts, [&, n, parts](int64_t part, int) {
    for (int64_t i = n * part / parts; i < n * (part + 1) / parts; i++)
      window_.set_image(static_cast<size_t>(i),
                        static_cast<const uint8_t *>(images.raw_tensor(kept_[static_cast<size_t>(i)])));
  });
  on_cpu_.run(ws, window_, arguments_, series_, output_, ids_, true);
}

template <>
void Superpose<GPUBackend>::superpose(::dali::Workspace &ws) {
  const auto &images = ws.Input<GPUBackend>(0);
  classes_.assign(kept_labels_.data(), kept_labels_.size(), static_cast<uint32_t>(num_classes_));
  pixels_.clear();
  for (int i : kept_) pixels_.push_back(static_cast<const uint8_t *>(images.raw_tensor(i)));
  if (!on_gpu_) on_gpu_ = std::make_unique<fdt::GpuSuperpose>(arguments_.plans, series_, output_, arguments_.targets);
  on_gpu_->run_window(pixels_.data(), shape_, classes_, ids_.data(), static_cast<int64_t>(ids_.size()),
                      whole_output(ws, 0), whole_output(ws, 1), ws.stream());
  ws.Output<GPUBackend>(0).SetLayout(TensorLayout(arguments_.layout));
}

// The pools of a GPU, uploaded once for all operators that use them.
std::shared_ptr<const fdt::GpuPool> upload(const std::shared_ptr<const Pool> &pool, int device) {
  static std::mutex mutex;
  static auto *const uploaded = new std::map<std::pair<const Pool *, int>, std::weak_ptr<const fdt::GpuPool>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto &kept = (*uploaded)[{pool.get(), device}];
  std::shared_ptr<const fdt::GpuPool> result = kept.lock();
  if (result) return result;
  const auto size = static_cast<size_t>(pool->shape().size());
  fdt::HugeMemory pixels(pool->size() * size);  // u8[n h w c], while it is uploaded
  for (size_t i = 0; i < pool->size(); i++) pool->get_image(i, pixels.data() + i * size);
  // The pool on the host is kept as long as its copy, so that its address means the same pool.
  auto *copy = new fdt::GpuPool(pixels.data(), pool->shape(), pool->classes);
  result = std::shared_ptr<const fdt::GpuPool>(copy, [pool](const fdt::GpuPool *old) { delete old; });
  kept = result;
  return result;
}

template <typename Backend>
class SuperposeResident : public Counting<Backend> {
 public:
  explicit SuperposeResident(const OpSpec &spec)
      : Counting<Backend>(spec),
        arguments_(spec),
        anchor_(one_of<Anchor>(spec, "anchor",
                               {{"random", Anchor::kRandom}, {"epoch", Anchor::kEpoch}, {"index", Anchor::kIndex}})),
        device_(spec.GetArgument<int>("device_id")),
        pool_(fdt::find_pool(spec.GetArgument<std::string>("pool"), arguments_.plans.pad,
                             spec.GetArgument<int>("num_threads"))),
        output_(arguments_.output(pool_->shape().c)),
        series_(arguments_.series, arguments_.plans.highest(pool_->classes)) {
    arguments_.check_classes(pool_->classes.num_classes);
  }

 protected:
  bool SetupImpl(std::vector<OutputDesc> &outputs, const ::dali::Workspace &ws) override {
    outputs = describe(ws.Input<CPUBackend>(0).num_samples(), pool_->shape(), output_, arguments_,
                       pool_->classes.num_classes);
    return true;
  }

  void RunImpl(::dali::Workspace &ws) override {
    read_ids(ws.Input<CPUBackend>(0), ids_);
    set_leaders(anchor_, arguments_.plans.seed, pool_->size(), order_, ids_);
    superpose(ws);
  }

 private:
  void superpose(::dali::Workspace &ws);

  Arguments arguments_;
  Anchor anchor_;
  int device_;
  std::shared_ptr<const Pool> pool_;
  Output output_;
  fdt::WeightSeries series_;
  EpochOrder order_;
  std::vector<Id> ids_;
  CpuSuperposers on_cpu_;
  std::shared_ptr<const fdt::GpuPool> gpu_pool_;
  std::unique_ptr<fdt::GpuSuperpose> on_gpu_;
};

template <>
void SuperposeResident<CPUBackend>::superpose(::dali::Workspace &ws) {
  on_cpu_.run(ws, *pool_, arguments_, series_, output_, ids_, false);
}

template <>
void SuperposeResident<GPUBackend>::superpose(::dali::Workspace &ws) {
  if (!on_gpu_) {  // here, and not when it is constructed: the CUDA context is current for certain
    gpu_pool_ = upload(pool_, device_);
    on_gpu_ = std::make_unique<fdt::GpuSuperpose>(arguments_.plans, series_, output_, arguments_.targets);
  }
  on_gpu_->run(*gpu_pool_, ids_.data(), static_cast<int64_t>(ids_.size()), whole_output(ws, 0), whole_output(ws, 1),
               ws.stream());
  ws.Output<GPUBackend>(0).SetLayout(TensorLayout(arguments_.layout));
}

}  // namespace fdt_operators

namespace dali {

DALI_SCHEMA(fdt__SuperposeOptions)
    .DocStr("Arguments that the operators of Full Distribution Training share.")
    .AddOptionalArg("plan_seed", "What every random decision depends on, together with an output's (epoch, index).",
                    int64_t{0})
    .AddOptionalArg("min_images",
                    "The fewest images of a sum. K is uniform on {min_images, .., max_images}, both cut to the number "
                    "of classes at hand.",
                    int64_t{1})
    .AddOptionalArg("max_images",
                    "The most images of a sum; 0 stands for the number of classes. 1 gives single images.", int64_t{0})
    .AddOptionalArg("probability", "Share of the outputs that are mixed; the others are one image each.", 1.0f)
    .AddOptionalArg("mix_threshold", "``probability`` times 2^32, exactly; it counts instead if it is 0 or more.",
                    int64_t{-1})
    .AddOptionalArg(
        "series", R"(The weights F_1, F_2, .. of a sum. ``"harmonic"``: F_i = (1/i) / H_K (Eq. 2 of the paper). Or what
``fdt_pipeline.series_argument(series, max_images)`` returns for any other.)",
        std::string("harmonic"))
    .AddOptionalArg("targets",
                    R"(* ``"soft"`` - float32 of shape (num_classes,): the weight of each image at its class, sum 1.
* ``"dominant"`` - the same, one-hot at the class of the first image, which has the largest weight.
* ``"label"`` - int64 scalar, the class of the first image.)",
                    std::string("soft"))
    .AddOptionalArg(
        "pad", "Every image is shifted by up to so many pixels in both directions before it is summed; zeros come in.",
        int64_t{0})
    .AddOptionalArg("flip", "Every image is mirrored left to right with odds 1/2 before it is summed.", false)
    .AddOptionalArg("mean", "Is taken off the sums: one number, or one for every channel, in units of 0..255.",
                    std::vector<float>{0.0f})
    .AddOptionalArg("std", "The sums are divided by it after that: one number, or one for every channel.",
                    std::vector<float>{1.0f})
    .AddOptionalArg("channels", "Channels of the output; gray images are repeated. 0: as many as the images have.",
                    int64_t{0})
    .AddOptionalTypeArg("dtype", "Type of the images that come out, FLOAT or FLOAT16.", DALI_FLOAT)
    .AddOptionalArg("output_layout", R"(Layout of the images that come out, ``"CHW"`` or ``"HWC"``.)",
                    std::string("CHW"));

DALI_SCHEMA(fdt__Superpose)
    .DocStr(R"(Full Distribution Training (W. Fuhl 2021, Algorithm 2) within a batch, the mix window.

Every sample of the batch is replaced by a sum of K images of the batch that are of pairwise different classes, with
weights F_1 >= .. >= F_K of sum 1: sum_i F_i augment(I_i), minus ``mean``, divided by ``std``. Classes are drawn without
replacement, in proportion to the number of their images, then an image of the class uniformly. K is uniform on
{``min_images``, .., ``max_images``}, both cut to the number of classes in the batch.

Outputs: images, FLOAT or FLOAT16 of shape (channels, h, w) or (h, w, channels), and targets (see ``targets``).

Errors: images of unequal shape (both are named), labels out of range (the sample is named), arguments out of range.)")
    .NumInput(2, 3)
    .NumOutput(2)
    .InputDox(0, "images", "TensorList of uint8 ('HWC')",
              "Images of one shape, (h, w, c) or (h, w), with 1 to 4 channels.")
    .InputDox(1, "labels", "TensorList of integers, on the CPU",
              "Classes in [0, num_classes): one number a sample, or ASCII digits as ``readers.webdataset`` gives a "
              ".cls member.")
    .InputDox(
        2, "ids", "TensorList of int64 of shape (2,), on the CPU",
        R"((epoch, index) of every output, which its plan is a function of, with the seed and the batch. A sample with an
index below 0 is padding: it is mixed into no output, and its own is zeros. Without ids samples are counted, and DALI's
checkpoints keep the count.)")
    .InputDevice(1, InputDevice::CPU)
    .InputDevice(2, InputDevice::CPU)
    .AddArg("num_classes", "Number of classes, up to 65,536.", DALI_INT64)
    .AddOptionalArg("anchor",
                    R"(Which image comes first in a sum, with the largest weight. ``"random"``: any, as in the paper.
``"epoch"``: the sample in the output's own place, so that each leads once.)",
                    std::string("random"))
    .AddParent("fdt__SuperposeOptions");

DALI_SCHEMA(fdt__SuperposeResident)
    .DocStr(R"(Full Distribution Training (W. Fuhl 2021, Algorithm 2) from a whole data set in memory.

Output (epoch, index) is a sum of K images of the pool that are of pairwise different classes, with weights
F_1 >= .. >= F_K of sum 1: sum_i F_i augment(I_i), minus ``mean``, divided by ``std``. It is a function of the ids, the
arguments and the pool alone: not of batch size, threads, device, or what ran before. Classes are drawn without replacement,
in proportion to the number of their images, then an image of the class uniformly.

Outputs: images, FLOAT or FLOAT16 of shape (channels, h, w) or (h, w, channels), and targets (see ``targets``).

Errors: a pool that is not there, or is not as its manifest says; ids or arguments out of range.)")
    .NumInput(1)
    .NumOutput(2)
    .InputDox(0, "ids", "TensorList of int64 of shape (2,), on the CPU",
              "(epoch, index) of every output. An index below 0 is padding, an output of zeros.")
    .InputDevice(0, InputDevice::CPU)
    .AddArg("pool",
            R"(A folder of raw shards, as ``python -m tools shard`` writes them: read once into huge pages of the
host's memory, or of the GPU's, and shared by all operators of the process that name it with the same ``pad``.)",
            DALI_STRING)
    .AddOptionalArg("anchor",
                    R"(Which image comes first in a sum, with the largest weight. ``"random"``: any, as in the paper.
``"epoch"``: a permutation of the pool, a new one every epoch, so that each leads once. ``"index"``: image number index.)",
                    std::string("random"))
    .AddParent("fdt__SuperposeOptions");

DALI_REGISTER_OPERATOR(fdt__Superpose, fdt_operators::Superpose<CPUBackend>, CPU);
DALI_REGISTER_OPERATOR(fdt__Superpose, fdt_operators::Superpose<GPUBackend>, GPU);
DALI_REGISTER_OPERATOR(fdt__SuperposeResident, fdt_operators::SuperposeResident<CPUBackend>, CPU);
DALI_REGISTER_OPERATOR(fdt__SuperposeResident, fdt_operators::SuperposeResident<GPUBackend>, GPU);

}  // namespace dali
