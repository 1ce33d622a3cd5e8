// What Python calls through ctypes about the GPU: the check before it is used, and plans and sums of arrays on the
// host, for the tests. Functions that can fail return -1 and leave a message in fdt_gpu_error().
#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "api.h"
#include "gpu.h"
#include "gpu_check.h"

// Images of a window on the host, u8[n h w c]; they are put on the GPU in one piece, or scattered.
struct FdtGpuWindow {
  const uint8_t *pixels;
  const int64_t *labels;
  int64_t n, h, w, c, num_classes, is_scattered;
};

namespace {

void copy_text(const std::string &text, char *to, size_t size) {
  if (!size) return;
  const size_t length = std::min(size - 1, text.size());
  std::memcpy(to, text.data(), length);
  to[length] = 0;
}

fdt::GpuSuperpose make(const FdtOptions &o, const fdt::ClassIndex &classes) {
  const fdt::PlanOptions plan = plan_options(o);
  return {plan, fdt::WeightSeries(o.series, plan.highest(classes)), output_of(o), static_cast<fdt::Targets>(o.targets)};
}

// Where the images of a window lie on the GPU: next to each other, or in the opposite order.
std::vector<const uint8_t *> window_of(const FdtGpuWindow &images, std::vector<fdt::GpuMemory> &pieces) {
  const size_t size = static_cast<size_t>(images.h * images.w * images.c);
  if (!images.is_scattered) {
    pieces.emplace_back(images.pixels, static_cast<size_t>(images.n) * size);
    std::vector<const uint8_t *> places;
    for (int64_t i = 0; i < images.n; i++)
      places.push_back(pieces[0].as<const uint8_t>() + static_cast<size_t>(i) * size);
    return places;
  }
  std::vector<const uint8_t *> places;
  for (int64_t i = 0; i < images.n; i++) {
    pieces.emplace_back(images.pixels + static_cast<size_t>(i) * size, size);
    places.push_back(pieces.back().as<const uint8_t>());
  }
  return places;
}

}  // namespace

FDT_EXPORT const char *fdt_gpu_error() { return last_error.c_str(); }

// Files to load instead of the system's libcuda.so.1 and libnvrtc.so.*; to be called before the GPU is first used.
FDT_EXPORT int64_t fdt_set_cuda_path(const char *path) {
  return guarded([&] { return fdt::set_cuda_path(path), 0; });
}
FDT_EXPORT int64_t fdt_set_nvrtc_path(const char *path) {
  return guarded([&] { return fdt::set_nvrtc_path(path), 0; });
}

// Compiles the kernel for `arch` ("sm_90", "compute_90"), which needs no GPU: 0, or 1 with the reason in `log`.
FDT_EXPORT int fdt_nvrtc_compile(const char *arch, char *log, size_t log_size) {
  std::string said;
  const int64_t done = guarded([&] {
    said = "bytes for 1 to 4 channels: ";
    for (int c = 1; c <= fdt::kMostChannels; c++) said += std::to_string(fdt::compile_kernels(arch, c, c).size()) + " ";
    fdt::compile_kernels(arch, 1, 3);
    return 0;
  });
  copy_text(done ? last_error : said, log, log_size);
  return done ? 1 : 0;
}

// Compares this GPU with the CPU: 0 where they agree, or 1. `message` says what was compared, or what is wrong.
FDT_EXPORT int fdt_gpu_self_check(int device, char *message, size_t size) {
  std::string said;
  const int64_t done = guarded([&] {
    const fdt::CurrentContext current(fdt::primary_context(device));
    said = fdt::check_gpu();
    return 0;
  });
  copy_text(done ? last_error : said, message, size);
  return done ? 1 : 0;
}

// Superposes n outputs on GPU 0 by one operator, batch_size at a time: from a pool there, or from a window where
// `handle` is null. images, targets: on the host.
FDT_EXPORT int64_t fdt_gpu_superpose(const FdtOptions *options, void *handle, const FdtGpuWindow *given, uint32_t epoch,
                                     const int64_t *indices, const int64_t *leaders, int64_t n, int64_t batch_size,
                                     void *images, void *targets) {
  return guarded([&]() -> int64_t {
    const fdt::ClassIndex classes = handle ? pool_of(handle).classes
                                           : fdt::ClassIndex(given->labels, static_cast<size_t>(given->n),
                                                             static_cast<uint32_t>(given->num_classes));
    const fdt::Shape shape = handle ? pool_of(handle).shape() : fdt::Shape{given->h, given->w, given->c};
    const std::vector<fdt::Id> ids = ids_of(epoch, indices, leaders, n);
    const size_t image_bytes = static_cast<size_t>(shape.h * shape.w * options->channels * (options->half ? 2 : 4));
    const size_t target_bytes = options->targets == 2 ? 8 : 4 * classes.num_classes;
    const fdt::CurrentContext current(fdt::primary_context(0));
    fdt::GpuSuperpose superpose = make(*options, classes);
    std::vector<fdt::GpuMemory> pieces;
    const std::vector<const uint8_t *> window = handle ? std::vector<const uint8_t *>() : window_of(*given, pieces);
    for (int64_t at = 0; at < n; at += batch_size) {
      const int64_t num = std::min(batch_size, n - at);
      const fdt::GpuMemory made(image_bytes * static_cast<size_t>(num)),
          made_targets(target_bytes * static_cast<size_t>(num));
      if (handle)
        superpose.run(pool_of(handle).on_gpu(), &ids[static_cast<size_t>(at)], num, made.as<void>(),
                      made_targets.as<void>(), nullptr);
      else
        superpose.run_window(window.data(), shape, classes, &ids[static_cast<size_t>(at)], num, made.as<void>(),
                             made_targets.as<void>(), nullptr);
      auto fetch = [&](void *to, const fdt::GpuMemory &from, size_t bytes) {
        char *place = static_cast<char *>(to) + static_cast<size_t>(at) * bytes;
        fdt::check_cuda(fdt::cuda_driver().cuMemcpyDtoH_v2(place, from.address(), from.size()), "superpose on the GPU");
      };
      fetch(images, made, image_bytes);
      fetch(targets, made_targets, target_bytes);
    }
    return 0;
  });
}

// Plans of n outputs, drawn on GPU 0 from a pool there: K of each, and if they are no more than `capacity` all
// constituents, six numbers each (image, label, dy, dx, flip, and the bits of the weight). -> the number of
// constituents.
FDT_EXPORT int64_t fdt_gpu_draw_plans(const FdtOptions *options, void *handle, uint32_t epoch, const int64_t *indices,
                                      const int64_t *leaders, int64_t n, int64_t capacity, uint32_t *k,
                                      uint32_t *entries) {
  static_assert(sizeof(fdt::gpu::PlanEntry) == 6 * sizeof(uint32_t), "a constituent is six numbers");
  return guarded([&]() -> int64_t {
    const fdt::Pool &pool = pool_of(handle);
    const fdt::CurrentContext current(fdt::primary_context(0));
    fdt::GpuSuperpose superpose = make(*options, pool.classes);
    std::vector<fdt::gpu::PlanEntry> drawn;
    const auto ids = ids_of(epoch, indices, leaders, n);
    const std::vector<uint32_t> sizes = superpose.draw_plans(pool.on_gpu(), ids.data(), n, drawn);
    std::copy(sizes.begin(), sizes.end(), k);
    if (static_cast<int64_t>(drawn.size()) <= capacity)
      std::memcpy(entries, drawn.data(), drawn.size() * sizeof drawn[0]);
    return static_cast<int64_t>(drawn.size());
  });
}
