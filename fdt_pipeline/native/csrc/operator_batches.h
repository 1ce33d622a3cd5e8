// Batches as DALI gives and takes them: ids, labels, images, outputs, and work for its threads.
#ifndef FDT_OPERATOR_BATCHES_H_
#define FDT_OPERATOR_BATCHES_H_

#include <string>
#include <vector>

#include "operator_arguments.h"
#include "superposer.h"

namespace fdt_operators {

// What the outputs are: of sample i counts[i] ones, or where samples are not grouped, one without a first dimension.
std::vector<OutputDesc> describe(const std::vector<int64_t> &counts, bool are_grouped, const Shape &shape,
                                 const Output &output, const Arguments &arguments, int64_t num_classes) {
  const int64_t c = output.channels;
  const TensorShape<> image = output.hwc ? TensorShape<>{shape.h, shape.w, c} : TensorShape<>{c, shape.h, shape.w};
  const bool are_labels = arguments.targets == Targets::kLabel;
  const TensorShape<> target = are_labels ? TensorShape<>{} : TensorShape<>{num_classes};
  const int n = static_cast<int>(counts.size()), group = are_grouped;
  TensorListShape<> images(n, group + image.sample_dim()), targets(n, group + target.sample_dim());
  for (int i = 0; i < n; i++) {
    const TensorShape<> first = are_grouped ? TensorShape<>{counts[static_cast<size_t>(i)]} : TensorShape<>{};
    images.set_tensor_shape(i, shape_cat(first, image));
    targets.set_tensor_shape(i, shape_cat(first, target));
  }
  return {{images, arguments.dtype}, {targets, are_labels ? DALI_INT64 : DALI_FLOAT}};
}

// What ids say of a sample: (epoch, index) of its output, or (epoch, first, count, modulo) of its outputs; behind these,
// where there is a ring, the position of its first image in the stream. index or first -1: it has none.
struct SampleIds {
  uint32_t epoch = 0;
  int64_t first = 0, count = 1, modulo = 0, position = 0;
  bool has_outputs() const { return first >= 0; }
};

// Whether samples have many outputs.
bool are_spans(const TensorList<CPUBackend> &from) {
  require(from.type() == DALI_INT64, "ids must be int64, got ", from.type());
  return from.num_samples() > 0 && volume(from.tensor_shape(0)) >= 4;
}

std::vector<SampleIds> read_ids(const TensorList<CPUBackend> &from, bool have_positions) {
  constexpr int64_t kMost = int64_t{1} << 32;
  const bool are_grouped = are_spans(from);
  const int64_t size = (are_grouped ? 4 : 2) + have_positions;
  const char *const kind = have_positions ? "(epoch, index, position) of shape (3,), or (epoch, first, count, modulo, "
                                            "position) of shape (5,)"
                                          : "(epoch, index) of shape (2,), or (epoch, first, count, modulo) of shape "
                                            "(4,)";
  std::vector<SampleIds> all;
  for (int i = 0; i < from.num_samples(); i++) {
    const auto shape = from.tensor_shape(i);
    require(volume(shape) == size, "ids must be ", kind, ", one kind in a batch, got shape ", shape, " for sample ", i);
    const int64_t *id = static_cast<const int64_t *>(from.raw_tensor(i));
    SampleIds ids;
    ids.first = id[1];
    require(id[0] >= 0 && id[0] < kMost && id[1] >= (have_positions ? -1 : 0) && id[1] < kMost,
            "ids must be (epoch, index) with 0 <= epoch < 2^32 and 0 <= index < 2^32, got (", id[0], ", ", id[1],
            ") for sample ", i);
    ids.epoch = static_cast<uint32_t>(id[0]);
    if (are_grouped) {
      require(id[1] < id[3] && id[2] > 0 && id[2] < kMost && id[3] <= kMost,
              "ids must be (epoch, first, count, modulo) with 0 <= first < modulo <= 2^32 and 0 < count < 2^32, got (",
              id[0], ", ", id[1], ", ", id[2], ", ", id[3], ") for sample ", i);
      ids.count = id[2];
      ids.modulo = id[3];
    }
    if (have_positions) {
      ids.position = id[size - 1];
      require(ids.position >= 0, "positions must be 0 or more, got ", ids.position, " for sample ", i);
    }
    all.push_back(ids);
  }
  return all;
}

// The outputs of a sample, behind those of others.
void add_outputs(const SampleIds &ids, bool are_grouped, std::vector<Span> &spans) {
  const auto first = static_cast<uint32_t>(ids.first);
  if (are_grouped)
    spans.push_back({ids.epoch, first, static_cast<uint32_t>(ids.count), static_cast<uint32_t>(ids.modulo)});
  else
    fdt::add_output(ids.epoch, first, spans);
}

// Whether these are bytes of a member of a tar: DALI's reader notes for each sample where it lies.
bool is_from_a_tar(const TensorList<CPUBackend> &from, int i) {
  const std::string source = from.GetMeta(i).GetSourceInfo();  // "/folder/shard.tar:1536:00000021.cls"
  return std::count(source.begin(), source.end(), ':') >= 2;
}

int64_t read_number(const TensorList<CPUBackend> &from, int sample, int64_t i) {
  const void *data = from.raw_tensor(sample);
  switch (from.type()) {
    case DALI_UINT8:
      return static_cast<const uint8_t *>(data)[i];
    case DALI_INT16:
      return static_cast<const int16_t *>(data)[i];
    case DALI_INT32:
      return static_cast<const int32_t *>(data)[i];
    case DALI_INT64:
      return static_cast<const int64_t *>(data)[i];
    default:
      refuse("labels must be int64, int32, int16, uint8 scalars, or the ASCII digits of a .cls member, got ",
             from.type());
  }
}

// Of a sample with one image.
int64_t read_label(const TensorList<CPUBackend> &from, int i) {
  const auto shape = from.tensor_shape(i);
  if (from.type() == DALI_UINT8 && shape.sample_dim() == 1) {  // as readers.webdataset gives a .cls member
    require(volume(shape) != 1 || is_from_a_tar(from, i), "label of sample ", i,
            ": uint8 of shape (1,) may be a number or an ASCII digit: cast numbers to int32; digits are read as "
            "fn.readers.webdataset gives them");
    const std::string digits(static_cast<const char *>(from.raw_tensor(i)), static_cast<size_t>(volume(shape)));
    require(!digits.empty() && digits.size() < 10 && digits.find_first_not_of("0123456789") == std::string::npos,
            "label of sample ", i, ": a .cls member holds \"", fdt::printable(digits), "\", expected a class number");
    return std::stoll(digits);
  }
  require(volume(shape) == 1, "labels must be one number a sample, got shape ", shape, " for sample ", i);
  return read_number(from, i, 0);
}

// Of all images, sample after sample; counts: images of each sample.
void read_labels(const TensorList<CPUBackend> &from, const std::vector<int64_t> &counts, bool are_grouped,
                 int64_t num_classes, std::vector<int64_t> &labels) {
  labels.clear();
  for (int i = 0; i < from.num_samples(); i++) {
    const int64_t count = counts[static_cast<size_t>(i)];
    require(!are_grouped || volume(from.tensor_shape(i)) == count, "sample ", i, " has ", count,
            " images, but labels of shape ", from.tensor_shape(i));
    for (int64_t j = 0; j < count; j++) {
      const int64_t label = are_grouped ? read_number(from, i, j) : read_label(from, i);
      require(label >= 0 && label < num_classes, "label ", label, " of sample ", i, " is outside [0, ", num_classes,
              "): check num_classes");
      labels.push_back(label);
    }
  }
}

// The one shape of the images of a batch, which are samples u8[h w c] or u8[h w], or many to a sample, u8[n h w c];
// counts: images of each sample.
template <typename Backend>
Shape read_shape(const TensorList<Backend> &images, std::vector<int64_t> &counts) {
  require(images.type() == DALI_UINT8, "images must be uint8, got ", images.type(), ": superpose before normalizing");
  const auto first = images.tensor_shape(0);
  const int dim = first.sample_dim();
  require(dim >= 2 && dim <= 4, "images must be [h w c] or [h w], or many in a sample, [n h w c], got shape ", first);
  const bool are_grouped = dim == 4;
  counts.clear();
  for (int i = 0; i < images.num_samples(); i++) {
    counts.push_back(are_grouped ? images.tensor_shape(i)[0] : 1);
    require(counts.back() > 0, "sample ", i, " is a batch without images");
    require(are_grouped ? images.tensor_shape(i).last(3) == first.last(3) : images.tensor_shape(i) == first,
            "images of one batch must have one shape, got ", first, " (sample 0) and ", images.tensor_shape(i),
            " (sample ", i, "): resize them first");
  }
  const int h = are_grouped;
  const Shape shape{first[h], first[h + 1], dim >= 3 ? first[h + 2] : 1};
  require(shape.size() > 0 && shape.size() < (int64_t{1} << 31),
          "images must have pixels, and less than 2^31 bytes, got shape ", first);
  return shape;
}

// Which image of a pool leads each output. The order of an epoch is kept for the epoch that was last asked for.
class Leaders {
 public:
  // Of spans of one epoch. are_led: otherwise there are no leaders. in_order: output i is led by image i.
  void set(bool are_led, bool in_order, uint64_t seed, size_t n, fdt::Asked &asked) {
    asked.leads = are_led ? Leads::kByIndex : Leads::kDrawn;
    if (!are_led) return;
    for (const Span &span : asked.spans) {
      const int64_t end = int64_t{span.first} + span.count,
                    most = span.modulo ? std::min<int64_t>(end, span.modulo) : end;
      require(most <= static_cast<int64_t>(n), in_order ? "in_order" : "anchor \"epoch\"", ": index ", most - 1,
              " is not below the number of images, ", n);
    }
    const uint32_t epoch = asked.spans[0].epoch;
    if (in_order || (asked.order.size() == n && epoch == epoch_)) return;
    const std::vector<int64_t> order = fdt::epoch_order(seed, epoch_ = epoch, n);
    asked.order.assign(order.begin(), order.end());
    asked.order_version++;
  }

 private:
  uint32_t epoch_ = 0;
};

// work(first, last, thread) over [0, n) on DALI's threads: some parts for each, so that one that comes late leaves
// little to wait for, but none of so few bytes that to wake a thread for it costs as much. What is one part is done on
// this thread. bytes: that are read for each of the n.
template <typename Work>
void share_out(::dali::Workspace &ws, int64_t n, int64_t bytes, Work work) {
  constexpr int64_t kLeast = 256 << 10;
  auto &threads = ws.GetThreadPool();
  const int64_t num_threads = threads.NumThreads();
  const int64_t most = std::min(n, num_threads == 1 ? 1 : 4 * num_threads);
  const int64_t parts = std::max<int64_t>(1, std::min(most, n * bytes / kLeast));
  if (parts == 1) return work(int64_t{0}, n, 0);
  for (int64_t part = 0; part < parts; part++)
    threads.AddWork([=](int thread) { work(n * part / parts, n * (part + 1) / parts, thread); }, -part);
  threads.RunAll();
}

// Where every output of a batch begins, sample after sample; counts: outputs of each sample.
std::vector<void *> places_of(TensorList<CPUBackend> &output, const std::vector<int64_t> &counts) {
  std::vector<void *> places;
  for (int i = 0; i < output.num_samples(); i++) {
    const int64_t count = counts[static_cast<size_t>(i)];
    const auto size = static_cast<size_t>(volume(output.tensor_shape(i)) / count) * output.type_info().size();
    for (int64_t j = 0; j < count; j++)
      places.push_back(static_cast<char *>(output.raw_mutable_tensor(i)) + static_cast<size_t>(j) * size);
  }
  return places;
}

// Superposers of the threads, and a batch through them.
class CpuSuperposers {
 public:
  // Outputs go to images[i] and targets[i]. is_new: of other images than before.
  void run(::dali::Workspace &ws, const Pool &pool, bool is_new, const Arguments &arguments,
           const fdt::MixWeights &weights, const Output &output, const fdt::Asked &asked, void *const *images,
           void *const *targets) {
    if (is_new || superposers_.empty()) {
      superposers_.resize(static_cast<size_t>(ws.GetThreadPool().NumThreads()));
      for (auto &superposer : superposers_) superposer.reset(pool, arguments.plans);
    }
    const std::vector<Id> ids = asked.ids();
    const int64_t images_each = arguments.plans.typical(pool.classes.num_distinct);
    share_out(ws, static_cast<int64_t>(ids.size()), images_each * pool.shape().size(), [&](int64_t first, int64_t last, int thread) {
      superposers_[static_cast<size_t>(thread)].run(pool, weights, output, arguments.targets, ids.data(), first, last,
                                                    images, targets);
    });
  }

 private:
  std::vector<fdt::Superposer> superposers_;
};

// Where output number `begin` of a batch is on the GPU; all are in one piece of memory.
void *place_of(TensorList<GPUBackend> &output, size_t begin, const std::vector<int64_t> &counts) {
  require(output.IsContiguous(), "expected DALI to give outputs in one piece of memory");
  const auto size = static_cast<size_t>(volume(output.tensor_shape(0)) / counts[0]) * output.type_info().size();
  return static_cast<char *>(output.raw_mutable_tensor(0)) + begin * size;
}

template <typename Backend>
void set_layout(TensorList<Backend> &images, bool are_grouped, const Arguments &arguments) {
  images.SetLayout(TensorLayout((are_grouped ? "N" : "") + arguments.layout));
}

}  // namespace fdt_operators

#endif  // FDT_OPERATOR_BATCHES_H_
