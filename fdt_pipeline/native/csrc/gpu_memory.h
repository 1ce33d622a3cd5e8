// Memory on the GPU, and how a batch's data gets there.
#ifndef FDT_GPU_MEMORY_H_
#define FDT_GPU_MEMORY_H_

#include <utility>
#include <vector>

#include "cuda_driver.h"
#include "gpu_module.h"

namespace fdt {

// A piece of it, freed in the context in which it was made, and never while the GPU may be using it.
class GpuMemory {
 public:
  GpuMemory() = default;
  explicit GpuMemory(size_t num_bytes);
  GpuMemory(const void *data, size_t num_bytes);              // a copy
  void write(const void *data, size_t num_bytes, size_t at);  // from byte `at` on; waits until it is there
  // The same from elsewhere on the GPU, in the order of the stream.
  void copy_from_gpu(const uint8_t *from, size_t num_bytes, size_t at, void *stream);
  ~GpuMemory();
  GpuMemory(GpuMemory &&other) noexcept { *this = std::move(other); }
  GpuMemory &operator=(GpuMemory &&other) noexcept;
  CudaPointer address() const { return address_; }
  size_t size() const { return size_; }
  template <typename T>
  T *as() const {
    return reinterpret_cast<T *>(address_);
  }

 private:
  CudaPointer address_ = 0;
  size_t size_ = 0;
  void *context_ = nullptr;
};

// Data of a batch on its way to the GPU: gathered here, then carried by the parameters of small kernels, so that the
// host's copy may be overwritten at once and no pinned memory is needed.
class GpuUpload {
 public:
  void begin() { words_.clear(); }
  size_t add(const void *data, size_t num_bytes);  // -> its place behind the address that `send` returns
  CudaPointer send(const GpuKernels &kernels, void *stream);

 private:
  std::vector<uint32_t> words_;
  GpuMemory memory_;
  void *stream_ = nullptr;
  bool used_ = false;
};

}  // namespace fdt

#endif  // FDT_GPU_MEMORY_H_
