#include "gpu.h"

#include <algorithm>
#include <stdexcept>

namespace fdt {
namespace {

template <typename T>
GpuMemory copy_of(const std::vector<T> &values) {
  return values.empty() ? GpuMemory() : GpuMemory(values.data(), values.size() * sizeof(T));
}

// [num_classes + 1]: where each class begins in by_class, and where the last one ends.
std::vector<uint32_t> bounds(const ClassIndex &classes) {
  std::vector<uint32_t> starts = classes.starts;
  starts.push_back(static_cast<uint32_t>(classes.size()));
  return starts;
}

// Shifted positions within an image are 32-bit numbers on the GPU.
void check_reach(const Shape &shape, uint32_t pad) {
  const int64_t reach = (shape.h + int64_t{pad}) * (shape.w + int64_t{pad}) * shape.c;
  if (reach >= (int64_t{1} << 31) - 16)
    throw std::invalid_argument("an image with its padding must have less than 2^31 - 16 bytes on a GPU, got " +
                                std::to_string(shape.h) + " x " + std::to_string(shape.w) + " x " +
                                std::to_string(shape.c) + " with pad " + std::to_string(pad));
}

template <typename T>
void set(const T *&pointer, CudaPointer address, size_t at) {
  pointer = reinterpret_cast<const T *>(address + at);
}

}  // namespace

GpuPool::GpuPool(size_t num_images, const Shape &given)
    : n(num_images), shape(given), pixels(num_images * static_cast<size_t>(given.size())) {}

void GpuPool::set_images(size_t first, size_t num, const uint8_t *images) {
  const auto size = static_cast<size_t>(shape.size());
  pixels.write(images, num * size, first * size);
}

void GpuPool::set_classes(const ClassIndex &classes) {
  summary.num_classes = classes.num_classes;
  summary.num_distinct = classes.num_distinct;
  starts = copy_of(bounds(classes));
  by_class = copy_of(classes.by_class);
  labels = copy_of(classes.labels);
}

GpuSuperpose::GpuSuperpose(const PlanOptions &options, const MixWeights &weights, const Output &output,
                           Targets targets)
    : options_(options), output_(output), targets_(targets) {
  for (size_t i = 0; i < weights.size(); i++) {
    const auto &[series, quantiles] = weights[i];
    weights_.push_back({copy_of(series.terms()), copy_of(series.sums()), copy_of(series.table()), copy_of(quantiles)});
  }
}

gpu::Parameters GpuSuperpose::parameters(const Shape &shape, const ClassIndex &classes) const {
  check_reach(shape, options_.pad);
  gpu::Parameters p{};
  p.seed = options_.seed;
  for (size_t i = 0; i < options_.branches.size(); i++) {
    const Branch &branch = options_.branches[i];
    const Weights &weights = weights_[i];
    p.branches[i] = {branch.mixed_end,
                     branch.end,
                     branch.kind,
                     branch.led,
                     branch.unique,
                     branch.lowest(classes.num_distinct),
                     branch.highest(classes.num_distinct),
                     Smoothing(branch.label_smoothing, classes.num_classes),
                     weights.terms.as<const double>(),
                     weights.sums.as<const double>(),
                     weights.table.as<const float>(),
                     weights.quantiles.as<const uint32_t>()};
  }
  p.highest = options_.highest(classes.num_distinct);
  p.num_classes = classes.num_classes;
  p.pad = static_cast<int32_t>(options_.pad);
  p.h = static_cast<int32_t>(shape.h);
  p.w = static_cast<int32_t>(shape.w);
  p.flip = options_.flip;
  p.half = output_.half;
  p.hwc = output_.hwc;
  p.target_kind = targets_;
  std::copy_n(output_.mean, kMostChannels, p.mean);
  std::copy_n(output_.inv_std, kMostChannels, p.inv_std);
  return p;
}

// What is on the GPU already is left there: the order of an epoch, which all its batches share.
void GpuSuperpose::set_order(gpu::Parameters &p, const Asked &asked, const GpuKernels &kernels, void *stream) {
  p.leads = asked.leads;
  if (asked.order.empty()) return;
  if (!order_ || order_version_ != asked.order_version) {
    order_upload_.begin();
    order_upload_.add(asked.order.data(), asked.order.size() * sizeof(uint32_t));
    order_ = order_upload_.send(kernels, stream);
    order_version_ = asked.order_version;
  }
  set(p.order, order_, 0);
}

// Neighbouring spans of equal counts in one launch.
void GpuSuperpose::launch(const GpuKernels &kernels, gpu::Parameters &p, const Shape &shape, const Asked &asked,
                          void *images, void *targets, void *stream) {
  const int64_t units = shape.h * ((shape.w + gpu::kUnitPixels - 1) / gpu::kUnitPixels);
  const int64_t threads = std::min<int64_t>((units + 31) / 32 * 32, gpu::kGatherThreads);
  const uint32_t shared_words =
      gpu::drawing_words(p.num_classes) + gpu::set_aside_words(p.highest, static_cast<uint32_t>(shape.c));
  const size_t image_bytes = static_cast<size_t>(shape.plane() * output_.channels) * (output_.half ? 2 : 4);
  const size_t target_bytes = targets_ == Targets::kLabel ? 8 : 4 * size_t{p.num_classes};
  for (size_t at = 0, end; at < asked.spans.size(); at = end) {
    const uint32_t count = asked.spans[at].count;
    for (end = at; end < asked.spans.size() && end - at < gpu::kMostSpans && asked.spans[end].count == count; end++)
      p.spans[end - at] = asked.spans[end];
    p.images = static_cast<char *>(images) + p.first_place * image_bytes;
    p.targets = static_cast<char *>(targets) + p.first_place * target_bytes;
    void *arguments[] = {&p};
    const auto num_outputs = static_cast<unsigned>(count * (end - at)),
               tiles = static_cast<unsigned>((units + threads - 1) / threads);
    check_cuda(cuda_driver().cuLaunchKernel(kernels.superpose, num_outputs, tiles, 1,
                                            static_cast<unsigned>(gpu::kDrawThreads + threads), 1, 1, 4 * shared_words,
                                            stream, arguments, nullptr),
               "launch the superposition");
    p.first_place += num_outputs;
  }
}

void GpuSuperpose::run(const GpuPool &pool, const Asked &asked, void *images, void *targets, void *stream) {
  gpu::Parameters p = parameters(pool.shape, pool.summary);
  const GpuKernels &kernels = gpu_kernels(static_cast<int>(pool.shape.c), output_.channels);
  p.pixels = pool.pixels.as<const uint8_t>();
  p.starts = pool.starts.as<const uint32_t>();
  p.by_class = pool.by_class.as<const uint32_t>();
  p.labels = pool.labels.as<const uint32_t>();
  set_order(p, asked, kernels, stream);
  launch(kernels, p, pool.shape, asked, images, targets, stream);
}

void GpuSuperpose::run_window(const uint8_t *const *pixels, const Shape &shape, const ClassIndex &classes,
                              const Asked &asked, void *images, void *targets, void *stream) {
  gpu::Parameters p = parameters(shape, classes);
  const GpuKernels &kernels = gpu_kernels(static_cast<int>(shape.c), output_.channels);
  bool contiguous = true;
  for (size_t i = 0; i < classes.size(); i++)
    contiguous = contiguous && pixels[i] == pixels[0] + i * static_cast<size_t>(shape.size());

  upload_.begin();
  const std::vector<uint32_t> starts = bounds(classes);
  const size_t starts_at = upload_.add(starts.data(), starts.size() * sizeof(uint32_t));
  const size_t by_class_at = upload_.add(classes.by_class.data(), classes.size() * sizeof(uint32_t));
  const auto repeats = [](const Branch &branch) { return !branch.unique; };
  const bool need_labels = asked.leads != Leads::kDrawn ||
                           std::any_of(options_.branches.begin(), options_.branches.end(), repeats);
  const size_t labels_at = need_labels ? upload_.add(classes.labels.data(), classes.size() * sizeof(uint32_t)) : 0;
  const size_t table_at = contiguous ? 0 : upload_.add(pixels, classes.size() * sizeof(pixels[0]));

  const CudaPointer at = upload_.send(kernels, stream);
  set(p.starts, at, starts_at);
  set(p.by_class, at, by_class_at);
  if (need_labels) set(p.labels, at, labels_at);
  if (contiguous)
    p.pixels = pixels[0];
  else
    set(p.table, at, table_at);
  set_order(p, asked, kernels, stream);
  launch(kernels, p, shape, asked, images, targets, stream);
}

}  // namespace fdt
