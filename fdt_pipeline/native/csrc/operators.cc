// The DALI operators fn.fdt.superpose and fn.fdt.superpose_resident, and their documentation. This file and its headers
// operator_*.h alone see DALI; they are written so that they compile against 1.34 as well as 2.x.
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <type_traits>

#include "dali/pipeline/operator/checkpointing/op_checkpoint.h"
#include "gpu.h"
#include "operator_batches.h"
#include "pool.h"

namespace fdt_operators {

// What DALI's checkpoints keep of an operator.
struct State {
  uint64_t counted, seed;
};

// Arguments, and a number that counts samples.
template <typename Backend>
class Resumable : public Operator<Backend> {
 public:
  explicit Resumable(const OpSpec &spec) : Operator<Backend>(spec), arguments_(spec) {}
  bool CanInferOutputs() const { return true; }  // of DALI before 1.42
  void SaveState(OpCheckpoint &checkpoint, AccessOrder) override {
    checkpoint.MutableCheckpointState() = State{counted_, arguments_.plans.seed};
  }
  // DALI's seed is another one in every process where none was asked for, so it is restored as well.
  void RestoreState(const OpCheckpoint &checkpoint) override {
    const auto &state = checkpoint.CheckpointState<State>();
    counted_ = state.counted;
    if (!arguments_.has_plan_seed) arguments_.plans.seed = state.seed;
  }
  std::string SerializeCheckpoint(const OpCheckpoint &checkpoint) const override {
    const auto &state = checkpoint.CheckpointState<State>();
    return std::to_string(state.counted) + " " + std::to_string(state.seed);
  }
  void DeserializeCheckpoint(OpCheckpoint &checkpoint, const std::string &data) const override {
    State state{};
    require(std::sscanf(data.c_str(), "%" SCNu64 " %" SCNu64, &state.counted, &state.seed) == 2,
            "expected a checkpoint of this version of fdt_pipeline, got \"", fdt::printable(data), "\"");
    checkpoint.MutableCheckpointState() = state;
  }

 protected:
  Arguments arguments_;
  uint64_t counted_ = 0;
};

template <typename Backend>
class Superpose : public Resumable<Backend> {
 public:
  explicit Superpose(const OpSpec &spec)
      : Resumable<Backend>(spec),
        anchor_(one_of<Anchor>(spec, "anchor", {{"random", Anchor::kRandom}, {"epoch", Anchor::kEpoch}})),
        num_classes_(spec.GetArgument<int64_t>("num_classes")) {
    arguments_.check_classes(num_classes_);
    make_series(spec.GetArgument<int>("max_batch_size"));
  }

 protected:
  bool SetupImpl(std::vector<OutputDesc> &outputs, const ::dali::Workspace &ws) override {
    const auto &images = ws.Input<Backend>(0);
    are_grouped_ = images.sample_dim() == 4;
    shape_ = read_shape(images, counts_);
    output_ = arguments_.output(shape_.c);
    outputs = describe(counts_, are_grouped_, shape_, output_, arguments_, num_classes_);
    return true;
  }

  // All samples are one mix window; a sample that holds many images is a window of its own.
  void RunImpl(::dali::Workspace &ws) override {
    read_labels(ws.Input<CPUBackend>(1), counts_, are_grouped_, num_classes_, labels_);
    const auto &images = ws.Input<Backend>(0);
    images_.clear();
    for (int i = 0; i < images.num_samples(); i++)
      for (int64_t j = 0; j < counts_[static_cast<size_t>(i)]; j++)
        images_.push_back(static_cast<const uint8_t *>(images.raw_tensor(i)) + j * shape_.size());
    asked_.leads = anchor_ == Anchor::kEpoch ? Leads::kByPlace : Leads::kDrawn;
    size_t begin = 0, sample = 0;
    for (std::vector<Span> &spans : number(ws)) {
      const size_t num = are_grouped_ ? static_cast<size_t>(counts_[sample++]) : images_.size();
      asked_.spans = std::move(spans);
      make_series(static_cast<int64_t>(num));
      window_.classes.assign(&labels_[begin], num, static_cast<uint32_t>(num_classes_));
      superpose(ws, begin, num);
      begin += num;
    }
    set_layout(ws.Output<Backend>(0), are_grouped_, arguments_);
    counted_ += images_.size();
  }

 private:
  using Resumable<Backend>::arguments_;
  using Resumable<Backend>::counted_;

  // Weights for sums of up to so many images.
  void make_series(int64_t num_images) {
    const auto &plans = arguments_.plans;
    const int64_t most = std::min<int64_t>(plans.max_images ? plans.max_images : num_classes_, num_images);
    if (series_ && most <= most_images_) return;
    most_images_ = most;
    on_gpu_.reset();
    series_ = std::make_unique<fdt::WeightSeries>(arguments_.series, static_cast<uint32_t>(most));
  }

  // The ids of each window.
  std::vector<std::vector<Span>> number(const ::dali::Workspace &ws) const {
    std::vector<std::vector<Span>> windows;
    if (ws.NumInput() > 2) {
      const auto &ids = ws.Input<CPUBackend>(2);
      std::vector<int64_t> counts;
      const std::vector<Span> spans = read_ids(ids, counts);
      require(are_spans(ids) == are_grouped_ && counts == counts_, "ids must be ",
              are_grouped_ ? "(epoch, first, count, modulo) with the number of the sample's images as count"
                           : "(epoch, index) of every sample");
      if (!are_grouped_) return {spans};
      for (const Span &span : spans) windows.push_back({span});
      return windows;
    }
    uint64_t at = counted_;
    for (int64_t count : counts_) {
      if (are_grouped_ || windows.empty()) windows.emplace_back();
      for (int64_t i = 0; i < count; i++, at++)
        fdt::add_output(static_cast<uint32_t>(at >> 32), static_cast<uint32_t>(at), windows.back());
    }
    return windows;
  }

  // Images begin .. begin + num - 1 of the batch.
  void superpose(::dali::Workspace &ws, size_t begin, size_t num);

  Anchor anchor_;
  int64_t num_classes_, most_images_ = 0;
  std::unique_ptr<fdt::WeightSeries> series_;
  bool are_grouped_ = false;
  Shape shape_;
  Output output_;
  std::vector<int64_t> counts_, labels_;  // counts_: images of each sample
  std::vector<const uint8_t *> images_;
  fdt::Asked asked_;
  Pool window_{0, {}, 0};
  CpuSuperposers on_cpu_;
  std::unique_ptr<fdt::GpuSuperpose> on_gpu_;
};

template <>
void Superpose<CPUBackend>::superpose(::dali::Workspace &ws, size_t begin, size_t num) {
  window_.resize(num, shape_, arguments_.plans.pad);
  share_out(ws, static_cast<int64_t>(num), [&](int64_t first, int64_t last, int) {
    for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); i++)
      window_.set_image(i, images_[begin + i]);
  });
  const auto images = places_of(ws.Output<CPUBackend>(0), counts_);
  const auto targets = places_of(ws.Output<CPUBackend>(1), counts_);
  on_cpu_.run(ws, window_, true, arguments_, *series_, output_, asked_, &images[begin], &targets[begin]);
}

template <>
void Superpose<GPUBackend>::superpose(::dali::Workspace &ws, size_t begin, size_t) {
  if (!on_gpu_) on_gpu_ = std::make_unique<fdt::GpuSuperpose>(arguments_.plans, *series_, output_, arguments_.targets);
  on_gpu_->run_window(&images_[begin], shape_, window_.classes, asked_,
                      place_of(ws.Output<GPUBackend>(0), begin, counts_),
                      place_of(ws.Output<GPUBackend>(1), begin, counts_), ws.stream());
}

template <typename Backend>
class SuperposeResident : public Resumable<Backend> {
 public:
  explicit SuperposeResident(const OpSpec &spec)
      : Resumable<Backend>(spec),
        anchor_(one_of<Anchor>(spec, "anchor",
                               {{"random", Anchor::kRandom}, {"epoch", Anchor::kEpoch}, {"index", Anchor::kIndex}})),
        pool_(fdt::find_pool(
            spec.GetArgument<std::string>("pool"), arguments_.plans.pad,
            std::is_same<Backend, GPUBackend>::value ? spec.GetArgument<int>("device_id") : fdt::kHost)),
        output_(arguments_.output(pool_->shape().c)),
        series_(arguments_.series, arguments_.plans.highest(pool_->classes)) {
    arguments_.check_classes(pool_->classes.num_classes);
  }

 protected:
  bool SetupImpl(std::vector<OutputDesc> &outputs, const ::dali::Workspace &ws) override {
    const auto &ids = ws.Input<CPUBackend>(0);
    spans_ = read_ids(ids, counts_);
    are_grouped_ = are_spans(ids);
    outputs = describe(counts_, are_grouped_, pool_->shape(), output_, arguments_, pool_->classes.num_classes);
    return true;
  }

  void RunImpl(::dali::Workspace &ws) override {
    size_t begin = 0;
    for (size_t at = 0, end; at < spans_.size(); at = end) {  // the spans of one epoch, which have one order
      asked_.spans.clear();
      for (end = at; end < spans_.size() && spans_[end].epoch == spans_[at].epoch; end++)
        asked_.spans.push_back(spans_[end]);
      leaders_.set(anchor_, arguments_.plans.seed, pool_->size(), asked_);
      superpose(ws, begin);
      for (const Span &span : asked_.spans) begin += span.count;
    }
    set_layout(ws.Output<Backend>(0), are_grouped_, arguments_);
  }

 private:
  using Resumable<Backend>::arguments_;

  void superpose(::dali::Workspace &ws, size_t begin);

  Anchor anchor_;
  std::shared_ptr<const Pool> pool_;
  Output output_;
  fdt::WeightSeries series_;
  Leaders leaders_;
  bool are_grouped_ = false;
  std::vector<int64_t> counts_;  // outputs of each sample
  std::vector<Span> spans_;
  fdt::Asked asked_;
  CpuSuperposers on_cpu_;
  std::unique_ptr<fdt::GpuSuperpose> on_gpu_;
};

template <>
void SuperposeResident<CPUBackend>::superpose(::dali::Workspace &ws, size_t begin) {
  const auto images = places_of(ws.Output<CPUBackend>(0), counts_);
  const auto targets = places_of(ws.Output<CPUBackend>(1), counts_);
  on_cpu_.run(ws, *pool_, false, arguments_, series_, output_, asked_, &images[begin], &targets[begin]);
}

template <>
void SuperposeResident<GPUBackend>::superpose(::dali::Workspace &ws, size_t begin) {
  // Here, and not when it is constructed: the CUDA context is current for certain.
  if (!on_gpu_) on_gpu_ = std::make_unique<fdt::GpuSuperpose>(arguments_.plans, series_, output_, arguments_.targets);
  on_gpu_->run(pool_->on_gpu(), asked_, place_of(ws.Output<GPUBackend>(0), begin, counts_),
               place_of(ws.Output<GPUBackend>(1), begin, counts_), ws.stream());
}

}  // namespace fdt_operators

namespace dali {
namespace {

// DALI 2 gives a seed to the operators whose schema asks for one; 1.34, whose schemas cannot, to all.
template <typename Schema>
auto ask_for_seed(Schema &schema, int) -> decltype(schema.AddRandomSeedArg()) {
  return schema.AddRandomSeedArg();
}

OpSchema &ask_for_seed(OpSchema &schema, long) { return schema; }

}  // namespace

static OpSchema *const fdt_seeded = &ask_for_seed(SchemaRegistry::RegisterSchema("fdt__Seeded"), 0);

DALI_SCHEMA(fdt__SuperposeOptions)
    .DocStr("Arguments that the operators of Full Distribution Training share.")
    .AddParent("fdt__Seeded")
    .AddOptionalArg<int64_t>(
        "plan_seed", R"(What every random decision depends on, together with an output's (epoch, index). Without it, the
``seed`` that DALI gives this operator: it follows from the pipeline's seed and the operator's place in the pipeline. A
pipeline without a seed draws one when it is made; its checkpoints keep that, its serialized form does not.)",
        nullptr)
    .AddOptionalArg("min_images",
                    "The fewest images of a sum. K is uniform on {min_images, .., max_images}, both cut to the number "
                    "of classes at hand.",
                    int64_t{1})
    .AddOptionalArg("max_images",
                    "The most images of a sum; 0 stands for the number of classes. 1 gives single images.", int64_t{0})
    .AddOptionalArg("probability",
                    "Share of the outputs that are mixed, a number in [0, 1]; the others are one image each. It goes "
                    "to the operator as text, so that it is exactly Python's.",
                    std::string("1"))
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
              "Images of one shape, (h, w, c) or (h, w), with 1 to 4 channels. Or samples of many images, "
              "(n, h, w, c), each a mix window of its own, with n labels; their outputs have n as first dimension.")
    .InputDox(1, "labels", "TensorList of integers, on the CPU",
              "Classes in [0, num_classes): one number a sample (int64, int32, int16, or a uint8 scalar), or ASCII "
              "digits as ``readers.webdataset`` gives a .cls member. Other uint8 of shape (1,) may mean either, and is "
              "an error: cast numbers to int32.")
    .InputDox(
        2, "ids", "TensorList of int64 of shape (2,) or (4,), on the CPU",
        R"((epoch, index) of every output, which its plan is a function of, with the seed and the batch. Samples that
are windows have ids of shape (4,), (epoch, first, n, modulo): their outputs are number first, first + 1, .. of the
epoch, modulo ``modulo``. Without ids images are counted, and DALI's checkpoints keep the count.)")
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

Errors: a pool that this process does not have, or that is in another device's memory; ids or arguments out of range.)")
    .NumInput(1)
    .NumOutput(2)
    .InputDox(0, "ids", "TensorList of int64 of shape (2,) or (4,), on the CPU",
              "(epoch, index) of every output. Or "
              "(epoch, first, count, modulo): a sample of count outputs, with that as first dimension, number first, "
              "first + 1, .. of the epoch, modulo ``modulo``.")
    .InputDevice(0, InputDevice::CPU)
    .AddArg("pool",
            R"(The name of a pool in the memory of the operator's device: ``pool.name``, where ``pool =
fdt_pipeline.load_pool(shards, pad=4)`` is kept until the pipeline is built. Any number of operators may share it. A
pipeline that is deserialized in another process needs a pool of the same name there.)",
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
