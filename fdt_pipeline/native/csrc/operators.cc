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
#include "ring.h"

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

// Images that come in together, and the outputs that are made then, or none.
struct Step {
  std::vector<Span> spans;
  size_t begin, num;  // images begin .. begin + num - 1 of a batch
  uint64_t position;  // of the first of them in the stream
};

template <typename Backend>
class Superpose : public Resumable<Backend> {
 public:
  explicit Superpose(const OpSpec &spec)
      : Resumable<Backend>(spec),
        num_classes_(spec.GetArgument<int64_t>("num_classes")),
        ring_(static_cast<size_t>(at_least(spec, "ring", 0))) {
    arguments_.check_classes(num_classes_);
    require(ring_.capacity() < UINT32_MAX, "ring must be below 2^32 - 1, got ", ring_.capacity());
    make_weights(ring_.capacity() ? ring_.capacity() : static_cast<size_t>(spec.GetArgument<int>("max_batch_size")));
  }

 protected:
  bool SetupImpl(std::vector<OutputDesc> &outputs, const ::dali::Workspace &ws) override {
    const auto &images = ws.Input<Backend>(0);
    are_grouped_ = images.sample_dim() == 4;
    const Shape shape = read_shape(images, counts_);
    require(!ring_.capacity() || counted_ == 0 || shape_.size() == 0 || shape == shape_,
            "images of a ring must have one shape, got ", shape.h, " x ", shape.w, " x ", shape.c, " after ", shape_.h,
            " x ", shape_.w, " x ", shape_.c, ": resize them first");
    shape_ = shape;
    output_ = arguments_.output(shape_.c);
    outputs = describe(counts_, are_grouped_, shape_, output_, arguments_, num_classes_);
    return true;
  }

  // The samples of a batch come in together; a sample that holds many images comes in by itself.
  void RunImpl(::dali::Workspace &ws) override {
    read_labels(ws.Input<CPUBackend>(1), counts_, are_grouped_, num_classes_, labels_);
    const auto &images = ws.Input<Backend>(0);
    images_.clear();
    for (int i = 0; i < images.num_samples(); i++)
      for (int64_t j = 0; j < counts_[static_cast<size_t>(i)]; j++)
        images_.push_back(static_cast<const uint8_t *>(images.raw_tensor(i)) + j * shape_.size());
    for (Step &step : steps(ws)) {
      choose_pool(step);
      put(ws, step);
      if (step.spans.empty()) continue;
      asked_.spans = std::move(step.spans);
      superpose(ws, step);
    }
    set_layout(ws.Output<Backend>(0), are_grouped_, arguments_);
    counted_ += images_.size();
  }

 private:
  using Resumable<Backend>::arguments_;
  using Resumable<Backend>::counted_;

  // For plans from so many images.
  void make_weights(size_t num_images) {
    const int64_t most = std::min<int64_t>(num_classes_, static_cast<int64_t>(num_images));
    if (weights_ && most <= most_classes_) return;
    most_classes_ = most;
    on_gpu_.reset();
    weights_ = std::make_unique<fdt::MixWeights>(arguments_.plans.branches, static_cast<uint32_t>(most));
  }

  std::vector<Step> steps(const ::dali::Workspace &ws) const {
    std::vector<SampleIds> ids;
    if (ws.NumInput() > 2) {
      const auto &given = ws.Input<CPUBackend>(2);
      ids = read_ids(given, ring_.capacity() > 0);
      const auto is_whole = [&](size_t i) { return ids[i].count == counts_[i]; };
      bool fine = are_spans(given) == are_grouped_;
      for (size_t i = 0; fine && i < ids.size(); i++) fine = is_whole(i);
      require(fine, "ids must be ",
              are_grouped_ ? "(epoch, first, count, modulo) with the number of the sample's images as count"
                           : "(epoch, index) of every sample");
    }
    std::vector<Step> all;
    size_t begin = 0;
    for (size_t i = 0; i < counts_.size(); i++) {
      const bool is_counted = ids.empty() || !ring_.capacity();
      const uint64_t position = is_counted ? counted_ + begin : static_cast<uint64_t>(ids[i].position);
      if (are_grouped_ || all.empty()) all.push_back({{}, begin, 0, position});
      Step &step = all.back();
      require(position == step.position + step.num, "positions of a batch must follow on each other, got ", position,
              " for sample ", i);
      require(ids.empty() || step.num == 0 || ids[i].has_outputs() == !step.spans.empty(),
              "index must be -1 for all samples of a batch or for none");
      if (ids.empty())
        for (uint64_t at = position, end = at + static_cast<uint64_t>(counts_[i]); at < end; at++)
          fdt::add_output(static_cast<uint32_t>(at >> 32), static_cast<uint32_t>(at), step.spans);
      else if (ids[i].has_outputs())
        add_outputs(ids[i], are_grouped_, step.spans);
      step.num += static_cast<size_t>(counts_[i]);
      begin += static_cast<size_t>(counts_[i]);
    }
    return all;
  }

  // What outputs are drawn from, and the images that lead them: those that come in, or all in the ring.
  void choose_pool(const Step &step) {
    const bool are_led = arguments_.plans.is_led();
    asked_.leads = are_led ? Leads::kByPlace : Leads::kDrawn;
    const int64_t *labels = &labels_[step.begin];
    size_t num = step.num;
    if (ring_.capacity()) {
      ring_.put(step.position, labels, num);
      if (step.spans.empty()) return;
      ring_.check_whole();
      if (are_led) {
        asked_.order.clear();
        for (size_t i = 0; i < step.num; i++)
          asked_.order.push_back(static_cast<uint32_t>(ring_.slot(step.position + i)));
        asked_.order_version++;
      }
      labels = ring_.labels().data();
      num = ring_.labels().size();
    }
    make_weights(num);
    pool_.classes.assign(labels, num, static_cast<uint32_t>(num_classes_));
  }

  void check_room() const {
    constexpr uint64_t kMost = uint64_t{1} << 46;  // bytes, more than there are addresses for
    require(ring_.capacity() <= kMost / static_cast<uint64_t>(shape_.size()), "a ring of ", ring_.capacity(),
            " images of ", shape_.size(), " bytes does not fit into memory: pass a smaller ring");
  }

  // Images that come in go to where they are drawn from.
  void put(::dali::Workspace &ws, const Step &step);
  void superpose(::dali::Workspace &ws, const Step &step);

  int64_t num_classes_, most_classes_ = 0;
  fdt::Ring ring_;  // of no capacity: there is none
  std::unique_ptr<fdt::MixWeights> weights_;
  bool are_grouped_ = false;
  Shape shape_{0, 0, 0};
  Output output_;
  std::vector<int64_t> counts_, labels_;  // counts_: images of each sample
  std::vector<const uint8_t *> images_;
  fdt::Asked asked_;
  Pool pool_{0, {}, 0};
  fdt::GpuMemory ring_memory_;
  void *ring_stream_ = nullptr;  // in which the last images came in
  CpuSuperposers on_cpu_;
  std::unique_ptr<fdt::GpuSuperpose> on_gpu_;
};

template <>
void Superpose<CPUBackend>::put(::dali::Workspace &ws, const Step &step) {
  const bool has_ring = ring_.capacity() > 0;
  if (has_ring) check_room();
  pool_.resize(has_ring ? ring_.capacity() : step.num, shape_, arguments_.plans.pad);
  share_out(ws, static_cast<int64_t>(step.num), shape_.size(), [&](int64_t first, int64_t last, int) {
    for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); i++)
      pool_.set_image(has_ring ? ring_.slot(step.position + i) : i, images_[step.begin + i]);
  });
}

template <>
void Superpose<CPUBackend>::superpose(::dali::Workspace &ws, const Step &step) {
  const auto images = places_of(ws.Output<CPUBackend>(0), counts_);
  const auto targets = places_of(ws.Output<CPUBackend>(1), counts_);
  on_cpu_.run(ws, pool_, true, arguments_, *weights_, output_, asked_, &images[step.begin], &targets[step.begin]);
}

template <>
void Superpose<GPUBackend>::put(::dali::Workspace &ws, const Step &step) {
  if (!ring_.capacity()) return;
  const auto size = static_cast<size_t>(shape_.size());
  if (!ring_memory_.size()) {
    check_room();
    ring_memory_ = fdt::GpuMemory(ring_.capacity() * size);
  }
  // What was launched in another stream may still read images that are about to go.
  if (ring_stream_ && ring_stream_ != ws.stream())
    fdt::check_cuda(fdt::cuda_driver().cuCtxSynchronize(), "wait for another stream");
  ring_stream_ = ws.stream();
  for (size_t i = 0, end; i < step.num; i = end) {  // neighbours of which both places are neighbours, at once
    const size_t slot = ring_.slot(step.position + i);
    const uint8_t *from = images_[step.begin + i];
    for (end = i + 1; end < step.num && slot + end - i < ring_.capacity() &&
                      images_[step.begin + end] == from + (end - i) * size;)
      end++;
    ring_memory_.copy_from_gpu(from, (end - i) * size, slot * size, ws.stream());
  }
}

template <>
void Superpose<GPUBackend>::superpose(::dali::Workspace &ws, const Step &step) {
  if (!on_gpu_) on_gpu_ = std::make_unique<fdt::GpuSuperpose>(arguments_.plans, *weights_, output_, arguments_.targets);
  std::vector<const uint8_t *> pixels(images_.begin() + static_cast<std::ptrdiff_t>(step.begin),
                                      images_.begin() + static_cast<std::ptrdiff_t>(step.begin + step.num));
  if (ring_.capacity()) {
    pixels.clear();
    for (size_t i = 0; i < ring_.labels().size(); i++)
      pixels.push_back(ring_memory_.as<const uint8_t>() + i * static_cast<size_t>(shape_.size()));
  }
  on_gpu_->run_window(pixels.data(), shape_, pool_.classes, asked_,
                      place_of(ws.Output<GPUBackend>(0), step.begin, counts_),
                      place_of(ws.Output<GPUBackend>(1), step.begin, counts_), ws.stream());
}

template <typename Backend>
class SuperposeResident : public Resumable<Backend> {
 public:
  explicit SuperposeResident(const OpSpec &spec)
      : Resumable<Backend>(spec),
        in_order_(spec.GetArgument<bool>("in_order")),
        pool_(fdt::find_pool(
            spec.GetArgument<std::string>("pool"), arguments_.plans.pad,
            std::is_same<Backend, GPUBackend>::value ? spec.GetArgument<int>("device_id") : fdt::kHost)),
        output_(arguments_.output(pool_->shape().c)),
        weights_(arguments_.plans.branches, pool_->classes.num_distinct) {
    arguments_.check_classes(pool_->classes.num_classes);
    require(!in_order_ || arguments_.plans.is_led(), "in_order needs outputs that have a leader: pass a mix with "
            "anchor=\"epoch\"");
  }

 protected:
  bool SetupImpl(std::vector<OutputDesc> &outputs, const ::dali::Workspace &ws) override {
    const auto &ids = ws.Input<CPUBackend>(0);
    are_grouped_ = are_spans(ids);
    spans_.clear();
    counts_.clear();
    for (const SampleIds &each : read_ids(ids, false)) {
      add_outputs(each, are_grouped_, spans_);
      counts_.push_back(each.count);
    }
    outputs = describe(counts_, are_grouped_, pool_->shape(), output_, arguments_, pool_->classes.num_classes);
    return true;
  }

  void RunImpl(::dali::Workspace &ws) override {
    size_t begin = 0;
    for (size_t at = 0, end; at < spans_.size(); at = end) {  // the spans of one epoch, which have one order
      asked_.spans.clear();
      for (end = at; end < spans_.size() && spans_[end].epoch == spans_[at].epoch; end++)
        asked_.spans.push_back(spans_[end]);
      leaders_.set(arguments_.plans.is_led(), in_order_, arguments_.plans.seed, pool_->size(), asked_);
      superpose(ws, begin);
      for (const Span &span : asked_.spans) begin += span.count;
    }
    set_layout(ws.Output<Backend>(0), are_grouped_, arguments_);
  }

 private:
  using Resumable<Backend>::arguments_;

  void superpose(::dali::Workspace &ws, size_t begin);

  bool in_order_;
  std::shared_ptr<const Pool> pool_;
  Output output_;
  fdt::MixWeights weights_;
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
  on_cpu_.run(ws, *pool_, false, arguments_, weights_, output_, asked_, &images[begin], &targets[begin]);
}

template <>
void SuperposeResident<GPUBackend>::superpose(::dali::Workspace &ws, size_t begin) {
  // Here, and not when it is constructed: the CUDA context is current for certain.
  if (!on_gpu_) on_gpu_ = std::make_unique<fdt::GpuSuperpose>(arguments_.plans, weights_, output_, arguments_.targets);
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
    .AddOptionalArg(
        "mix", R"(How images are mixed: ``FDT``, ``MixUp``, ``CutMix`` or ``OneOf`` of fdt_pipeline, by default
``FDT()``. ``fn`` takes the object itself; elsewhere it is the text ``fdt_pipeline.mix_argument(mix, num_classes)``.)",
        std::string("fdt"))
    .AddOptionalArg("targets",
                    R"(* ``"soft"`` - float32 of shape (num_classes,): the weight of each image at its class, sum 1; then
  smoothed, where the mix says so.
* ``"dominant"`` - the same, one-hot at the class of the image with the largest weight.
* ``"label"`` - int64 scalar, that class.)",
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
    .DocStr(R"(Mixes images of a batch, or of a ring, and their labels: Full Distribution Training, MixUp, CutMix.

Every sample of the batch is replaced by a sum of K images with weights of sum 1, sum_i F_i augment(I_i), or with
CutMix by one with a box of another; minus ``mean``, divided by ``std``. By default, Full Distribution Training (W. Fuhl
2021, Algorithm 2), K is uniform on {1, .., number of classes at hand}, the classes are pairwise different, drawn in
proportion to the number of their images, and F_i = (1/i) / H_K. Images are drawn from the batch; with ``ring``, from
the last so many images that have come in, those of the batch among them.

Outputs: images, FLOAT or FLOAT16 of shape (channels, h, w) or (h, w, channels), and targets (see ``targets``).

Errors: images of unequal shape (both are named), labels out of range (the sample is named), arguments out of range.)")
    .NumInput(2, 3)
    .NumOutput(2)
    .InputDox(0, "images", "TensorList of uint8 ('HWC')",
              "Images of one shape, (h, w, c) or (h, w), with 1 to 4 channels. Or samples of many images, "
              "(n, h, w, c), each a batch of its own, with n labels; their outputs have n as first dimension.")
    .InputDox(1, "labels", "TensorList of integers, on the CPU",
              "Classes in [0, num_classes): one number a sample (int64, int32, int16, or a uint8 scalar), or ASCII "
              "digits as ``readers.webdataset`` gives a .cls member. Other uint8 of shape (1,) may mean either, and is "
              "an error: cast numbers to int32.")
    .InputDox(
        2, "ids", "TensorList of int64 of shape (2,) or (4,), with a ring (3,) or (5,), on the CPU",
        R"((epoch, index) of every output, which its plan is a function of, with the seed and the images at hand.
Samples of many images have ids of shape (4,), (epoch, first, n, modulo): their outputs are number first, first + 1, ..
of the epoch, modulo ``modulo``. With a ring, the position of the (first) image in the stream comes last: at 0 the ring
is emptied, and with index or first -1 images come in, and what comes out means nothing. Without ids images are counted,
and DALI's checkpoints keep the count, but not a ring's images.)")
    .InputDevice(1, InputDevice::CPU)
    .InputDevice(2, InputDevice::CPU)
    .AddArg("num_classes", "Number of classes, up to 65,536.", DALI_INT64)
    .AddOptionalArg("ring",
                    "Outputs are drawn from the last so many images, at least a batch, which are kept as they came, "
                    "uint8. 0: from those of their batch.",
                    int64_t{0})
    .AddParent("fdt__SuperposeOptions");

DALI_SCHEMA(fdt__SuperposeResident)
    .DocStr(R"(Mixes images of a whole data set in memory, and their labels: Full Distribution Training, MixUp, CutMix.

Output (epoch, index) is a sum of K images of the pool with weights of sum 1, sum_i F_i augment(I_i), or with CutMix
one with a box of another; minus ``mean``, divided by ``std``. It is a function of the ids, the arguments and the pool
alone: not of batch size, threads, device, or what ran before. By default, Full Distribution Training (W. Fuhl 2021,
Algorithm 2), K is uniform on {1, .., number of classes}, the classes are pairwise different, drawn in proportion to the
number of their images, and F_i = (1/i) / H_K. Where the mix has anchor="epoch", image 1 walks a permutation of the
pool, a new one every epoch, so that each leads once.

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
    .AddOptionalArg("in_order", "Output ``index`` is led by image number index, where the mix has leaders.", false)
    .AddParent("fdt__SuperposeOptions");

DALI_REGISTER_OPERATOR(fdt__Superpose, fdt_operators::Superpose<CPUBackend>, CPU);
DALI_REGISTER_OPERATOR(fdt__Superpose, fdt_operators::Superpose<GPUBackend>, GPU);
DALI_REGISTER_OPERATOR(fdt__SuperposeResident, fdt_operators::SuperposeResident<CPUBackend>, CPU);
DALI_REGISTER_OPERATOR(fdt__SuperposeResident, fdt_operators::SuperposeResident<GPUBackend>, GPU);

}  // namespace dali
