// Batches as DALI gives and takes them: ids, labels, images, outputs, and work for its threads.
#ifndef FDT_OPERATOR_BATCHES_H_
#define FDT_OPERATOR_BATCHES_H_

#include <string>
#include <vector>

#include "operator_arguments.h"
#include "superposer.h"

namespace fdt_operators {

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

// Whether these are bytes of a member of a tar: DALI's reader notes for each sample where it lies.
bool is_from_a_tar(const TensorList<CPUBackend> &from, int i) {
  const std::string source = from.GetMeta(i).GetSourceInfo();  // "/folder/shard.tar:1536:00000021.cls"
  return std::count(source.begin(), source.end(), ':') >= 2;
}

int64_t read_label(const TensorList<CPUBackend> &from, int i) {
  const auto shape = from.tensor_shape(i);
  const void *data = from.raw_tensor(i);
  if (from.type() == DALI_UINT8 && shape.sample_dim() == 1) {  // as readers.webdataset gives a .cls member
    require(volume(shape) != 1 || is_from_a_tar(from, i), "label of sample ", i,
            ": uint8 of shape (1,) may be a number or an ASCII digit: cast numbers to int32; digits are read as "
            "fn.readers.webdataset gives them");
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
      refuse("labels must be int64, int32, int16, uint8 scalars, or the ASCII digits of a .cls member, got ",
             from.type());
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

// Which image of a pool leads each output. The order of an epoch is kept for the epoch that was last asked for.
class Leaders {
 public:
  void set(Anchor anchor, uint64_t seed, size_t n, std::vector<Id> &ids) {
    if (anchor == Anchor::kRandom) return;
    const bool in_order = anchor == Anchor::kEpoch;
    for (Id &id : ids) {
      if (id.index < 0) continue;
      require(id.index < static_cast<int64_t>(n), "anchor \"", in_order ? "epoch" : "index", "\": index ", id.index,
              " is not below the number of images, ", n);
      if (in_order && (order_.size() != n || id.epoch != epoch_))
        order_ = fdt::epoch_order(seed, epoch_ = id.epoch, n);
      id.leader = in_order ? order_[static_cast<size_t>(id.index)] : id.index;
    }
  }

 private:
  uint32_t epoch_ = 0;
  std::vector<int64_t> order_;
};

// work(first, last, thread) over [0, n) on DALI's threads: some parts for each, so that one that comes late leaves
// little to wait for. Where there is but one thread, on this one.
template <typename Work>
void share_out(::dali::Workspace &ws, int64_t n, Work work) {
  auto &threads = ws.GetThreadPool();
  const int64_t num_threads = threads.NumThreads(), parts = num_threads == 1 ? 1 : std::min(n, 4 * num_threads);
  if (parts == 1) return work(int64_t{0}, n, 0);
  for (int64_t part = 0; part < parts; part++)
    threads.AddWork([=](int thread) { work(n * part / parts, n * (part + 1) / parts, thread); }, -part);
  threads.RunAll();
}

// Superposers of the threads, and a batch through them.
class CpuSuperposers {
 public:
  void run(::dali::Workspace &ws, const Pool &pool, const Arguments &arguments, const fdt::WeightSeries &series,
           const Output &output, const std::vector<Id> &ids, bool new_pool) {
    if (new_pool || superposers_.empty()) {
      superposers_.resize(static_cast<size_t>(ws.GetThreadPool().NumThreads()));
      for (auto &superposer : superposers_) superposer.reset(pool, arguments.plans);
    }
    auto &images = ws.Output<CPUBackend>(0);
    auto &targets = ws.Output<CPUBackend>(1);
    image_at_.clear();
    target_at_.clear();
    for (int i = 0; i < images.num_samples(); i++) {
      image_at_.push_back(images.raw_mutable_tensor(i));
      target_at_.push_back(targets.raw_mutable_tensor(i));
    }
    share_out(ws, images.num_samples(), [&](int64_t first, int64_t last, int thread) {
      superposers_[static_cast<size_t>(thread)].run(pool, series, output, arguments.targets, ids.data(), first, last,
                                                    image_at_.data(), target_at_.data());
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

}  // namespace fdt_operators

#endif  // FDT_OPERATOR_BATCHES_H_
