// Plans and sums on a GPU: what `Superposer` does, for a whole batch in one launch (superpose.cu).
//
// Everything is done in the order of the stream it is given, and nothing waits for the GPU once buffers have their
// size. All of it wants a current CUDA context, and all of it throws std::runtime_error with the driver's own words.
#ifndef FDT_GPU_H_
#define FDT_GPU_H_

#include <cstdint>
#include <vector>

#include "gpu_memory.h"
#include "gpu_module.h"
#include "superpose.h"
#include "superposer.h"

namespace fdt {

// The images of a pool, u8[n h w c], and their classes on the GPU.
class GpuPool {
 public:
  GpuPool(size_t n, const Shape &shape);                             // room for them
  void set_images(size_t first, size_t num, const uint8_t *images);  // u8[num h w c] on the host
  void set_classes(const ClassIndex &classes);
  const size_t n;
  const Shape shape;
  ClassIndex summary;  // sizes alone
  GpuMemory pixels, starts, by_class, labels;
};

// An operator's worth of it. Not for two threads at once.
class GpuSuperpose {
 public:
  // `weights` must be of options.branches, and an output have as many channels as images, or copies of one.
  GpuSuperpose(const PlanOptions &options, const MixWeights &weights, const Output &output, Targets targets);

  // A batch of n outputs from a resident pool. images: f32 or f16 [n channels h w] or [n h w channels]; targets:
  // f32[n num_classes] or i64[n]; both on the GPU.
  void run(const GpuPool &pool, const Asked &asked, void *images, void *targets, void *stream);

  // The same from images that lie anywhere on the GPU: pixels[i] is u8[h w c], of the class that `classes` says.
  void run_window(const uint8_t *const *pixels, const Shape &shape, const ClassIndex &classes, const Asked &asked,
                  void *images, void *targets, void *stream);

 private:
  gpu::Parameters parameters(const Shape &shape, const ClassIndex &classes) const;
  void set_order(gpu::Parameters &p, const Asked &asked, const GpuKernels &kernels, void *stream);
  void launch(const GpuKernels &kernels, gpu::Parameters &p, const Shape &shape, const Asked &asked, void *images,
              void *targets, void *stream);

  const PlanOptions options_;
  const Output output_;
  const Targets targets_;
  struct Weights {
    GpuMemory terms, sums, table, quantiles;
  };
  std::vector<Weights> weights_;  // of each branch
  GpuUpload upload_, order_upload_;
  CudaPointer order_ = 0;       // on the GPU
  uint64_t order_version_ = 0;  // of what is there
};

}  // namespace fdt

#endif  // FDT_GPU_H_
