// The GPU's kernels: from the source in this library, by NVRTC, to functions that can be launched.
#ifndef FDT_GPU_MODULE_H_
#define FDT_GPU_MODULE_H_

#include <string>

namespace fdt {

// Kernels (superpose.cu) as functions of the driver API, in one context.
struct GpuKernels {
  void *store, *superpose;
};

// Those for images of c channels and outputs of `channels`, in the current context; compiled at their first use and
// kept for the life of the process. std::runtime_error: no current context, no NVRTC, or it cannot make code for this
// GPU.
const GpuKernels &gpu_kernels(int c, int channels);

// The kernels for `arch` ("sm_90": machine code; "compute_90": PTX, which the driver compiles). Needs no GPU.
// std::runtime_error with the compiler's own words.
std::string compile_kernels(const std::string &arch, int c, int channels);

}  // namespace fdt

#endif  // FDT_GPU_MODULE_H_
