// What Python calls through ctypes (native/pool.py, native/load.py): pools are filled here, and NVRTC's path is set.
// Functions that can fail return null or a negative number and leave a message in fdt_error().
#include <stdexcept>

#include "api.h"
#include "cuda_driver.h"
#include "gpu_module.h"

namespace fdt {

std::string &last_error() {
  thread_local std::string error;
  return error;
}

}  // namespace fdt

using fdt::guarded;
using fdt::pool_of;

FDT_EXPORT const char *fdt_error() { return fdt::last_error().c_str(); }

// Loads this file instead of the system's libnvrtc.so.*; to be called before the GPU is first used.
FDT_EXPORT int64_t fdt_set_nvrtc_path(const char *path) {
  return guarded([&] { return fdt::set_nvrtc_path(path), 0; });
}

// Makes the kernels for images of c channels and outputs of `channels` ready on a GPU.
FDT_EXPORT int64_t fdt_prepare_gpu(int device, int c, int channels) {
  return guarded([&] {
    const fdt::CurrentContext current(fdt::primary_context(device));
    fdt::gpu_kernels(c, channels);
    return 0;
  });
}

// device: the number of a GPU, or -1 for the host.
FDT_EXPORT void *fdt_pool_create(int64_t n, int64_t h, int64_t w, int64_t c, int64_t pad, int device) {
  void *handle = nullptr;
  guarded([&] {
    if (n < 1) throw std::invalid_argument("the pool is empty: expected one image or more");
    if (h < 1 || w < 1 || c < 1 || c > fdt::kMostChannels)
      throw std::invalid_argument("images must be [h w c] with 1 to 4 channels");
    handle = new fdt::PoolHandle(
        std::make_shared<fdt::Pool>(static_cast<size_t>(n), fdt::Shape{h, w, c}, pad, device));
    return 0;
  });
  return handle;
}

// u8[n h w c] become images first .. first + n - 1. Threads may set different images at the same time.
FDT_EXPORT int64_t fdt_pool_set(void *handle, int64_t first, int64_t n, const uint8_t *pixels) {
  return guarded([&] {
    pool_of(handle).set_images(static_cast<size_t>(first), static_cast<size_t>(n), pixels);
    return 0;
  });
}

// Labels of all images; operators find the pool by `name` from here on.
FDT_EXPORT int64_t fdt_pool_finish(void *handle, const int64_t *labels, uint32_t num_classes, const char *name) {
  return guarded([&] {
    pool_of(handle).set_labels(labels, num_classes);
    fdt::register_pool(name, *static_cast<fdt::PoolHandle *>(handle));
    return 0;
  });
}

// Operators that use the pool keep its memory until they end. name: as it was registered, or null.
FDT_EXPORT int64_t fdt_pool_release(void *handle, const char *name) {
  return guarded([&] {
    const std::unique_ptr<fdt::PoolHandle> ended(static_cast<fdt::PoolHandle *>(handle));
    if (name) fdt::unregister_pool(name);
    return 0;
  });
}
