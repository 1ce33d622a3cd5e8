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

// Outputs that follow each other and are drawn whole need no ids on the GPU.
bool are_consecutive(const Id *ids, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (ids[i].index < 0 || ids[i].leader >= 0 || ids[i].epoch != ids[0].epoch || ids[i].index != ids[0].index + i)
      return false;
  return true;
}

gpu::PackedId pack(const Id &id) {
  return {id.epoch, static_cast<uint32_t>(id.index), id.leader < 0 ? gpu::kNone : static_cast<uint32_t>(id.leader),
          id.index < 0};
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

GpuSuperpose::GpuSuperpose(const PlanOptions &options, const WeightSeries &series, const Output &output,
                           Targets targets)
    : options_(options),
      output_(output),
      targets_(targets),
      terms_(copy_of(series.terms())),
      sums_(copy_of(series.sums())),
      weights_(copy_of(series.table())) {}

gpu::Parameters GpuSuperpose::parameters(const Shape &shape, const ClassIndex &classes, void *images,
                                         void *targets) const {
  check_reach(shape, options_.pad);
  gpu::Parameters p{};
  p.terms = terms_.as<const double>();
  p.sums = sums_.as<const double>();
  p.weights = weights_.as<const float>();
  p.seed = options_.seed;
  p.mix_threshold = options_.mix_threshold;
  p.lowest = options_.lowest(classes);
  p.highest = options_.highest(classes);
  p.num_classes = classes.num_classes;
  p.pad = static_cast<int32_t>(options_.pad);
  p.h = static_cast<int32_t>(shape.h);
  p.w = static_cast<int32_t>(shape.w);
  p.flip = options_.flip;
  p.half = output_.half;
  p.hwc = output_.hwc;
  p.target_kind = targets_;
  p.images = images;
  p.targets = targets;
  std::copy_n(output_.mean, kMostChannels, p.mean);
  std::copy_n(output_.inv_std, kMostChannels, p.inv_std);
  return p;
}

// -> the place of the ids in the upload, if there are any there.
size_t GpuSuperpose::add_ids(gpu::Parameters &p, const Id *ids, int64_t n) {
  p.epoch0 = ids[0].epoch;
  p.index0 = static_cast<uint32_t>(ids[0].index);
  if (are_consecutive(ids, n)) return SIZE_MAX;
  std::vector<gpu::PackedId> packed;
  for (int64_t i = 0; i < n; i++) packed.push_back(pack(ids[i]));
  return upload_.add(packed.data(), packed.size() * sizeof(gpu::PackedId));
}

void GpuSuperpose::launch(const GpuKernels &kernels, gpu::Parameters &p, const Shape &shape, int64_t n, void *stream) {
  const int64_t units = shape.h * ((shape.w + gpu::kUnitPixels - 1) / gpu::kUnitPixels);
  const int64_t threads = std::min<int64_t>((units + 31) / 32 * 32, gpu::kGatherThreads);
  const uint32_t shared_words =
      gpu::drawing_words(p.num_classes) + gpu::set_aside_words(p.highest, static_cast<uint32_t>(shape.c));
  void *arguments[] = {&p};
  const auto grid_x = static_cast<unsigned>(n), grid_y = static_cast<unsigned>((units + threads - 1) / threads);
  check_cuda(cuda_driver().cuLaunchKernel(kernels.superpose, grid_x, grid_y, 1,
                                          static_cast<unsigned>(gpu::kDrawThreads + threads), 1, 1, 4 * shared_words,
                                          stream, arguments, nullptr),
             "launch the superposition");
}

void GpuSuperpose::run(const GpuPool &pool, const Id *ids, int64_t n, void *images, void *targets, void *stream) {
  if (n == 0) return;
  gpu::Parameters p = parameters(pool.shape, pool.summary, images, targets);
  const GpuKernels &kernels = gpu_kernels(static_cast<int>(pool.shape.c), output_.channels);
  p.pixels = pool.pixels.as<const uint8_t>();
  p.starts = pool.starts.as<const uint32_t>();
  p.by_class = pool.by_class.as<const uint32_t>();
  p.labels = pool.labels.as<const uint32_t>();
  upload_.begin();
  const size_t place = add_ids(p, ids, n);
  if (place != SIZE_MAX) set(p.ids, upload_.send(kernels, stream), place);
  launch(kernels, p, pool.shape, n, stream);
}

void GpuSuperpose::run_window(const uint8_t *const *pixels, const Shape &shape, const ClassIndex &classes,
                              const Id *ids, int64_t n, void *images, void *targets, void *stream) {
  if (n == 0) return;
  gpu::Parameters p = parameters(shape, classes, images, targets);
  const GpuKernels &kernels = gpu_kernels(static_cast<int>(shape.c), output_.channels);
  bool contiguous = true, leads = false;
  for (size_t i = 0; i < classes.size(); i++)
    contiguous = contiguous && pixels[i] == pixels[0] + i * static_cast<size_t>(shape.size());
  for (int64_t i = 0; i < n; i++) leads = leads || ids[i].leader >= 0;

  upload_.begin();
  const std::vector<uint32_t> starts = bounds(classes);
  const size_t starts_at = upload_.add(starts.data(), starts.size() * sizeof(uint32_t));
  const size_t by_class_at = upload_.add(classes.by_class.data(), classes.size() * sizeof(uint32_t));
  const size_t labels_at = leads ? upload_.add(classes.labels.data(), classes.size() * sizeof(uint32_t)) : 0;
  const size_t table_at = contiguous ? 0 : upload_.add(pixels, classes.size() * sizeof(pixels[0]));
  const size_t ids_at = add_ids(p, ids, n);

  const CudaPointer at = upload_.send(kernels, stream);
  set(p.starts, at, starts_at);
  set(p.by_class, at, by_class_at);
  if (leads) set(p.labels, at, labels_at);
  if (contiguous)
    p.pixels = pixels[0];
  else
    set(p.table, at, table_at);
  if (ids_at != SIZE_MAX) set(p.ids, at, ids_at);
  launch(kernels, p, shape, n, stream);
}

}  // namespace fdt
