// CUDA's driver API and NVRTC, looked up when the GPU is first used: nothing is linked, and no CUDA header is needed.
#ifndef FDT_CUDA_DRIVER_H_
#define FDT_CUDA_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace fdt {

using CudaPointer = unsigned long long;  // CUdeviceptr

// The functions of libcuda that are used, with CUDA's handles as void pointers and its errors as numbers.
#define FDT_CUDA_FUNCTIONS(F)                                                                                         \
  F(int, cuInit, (unsigned flags))                                                                                    \
  F(int, cuGetErrorString, (int error, const char **text))                                                            \
  F(int, cuDeviceGet, (int *device, int number))                                                                      \
  F(int, cuDeviceGetAttribute, (int *value, int attribute, int device))                                               \
  F(int, cuDevicePrimaryCtxRetain, (void **context, int device))                                                      \
  F(int, cuCtxGetCurrent, (void **context))                                                                           \
  F(int, cuCtxGetDevice, (int *device))                                                                               \
  F(int, cuCtxPushCurrent_v2, (void *context))                                                                        \
  F(int, cuCtxPopCurrent_v2, (void **context))                                                                        \
  F(int, cuCtxSynchronize, ())                                                                                        \
  F(int, cuModuleLoadData, (void **module, const void *image))                                                        \
  F(int, cuModuleGetFunction, (void **function, void *module, const char *name))                                      \
  F(int, cuLaunchKernel,                                                                                              \
    (void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,           \
     unsigned block_z, unsigned shared_bytes, void *stream, void **parameters, void **extra))                         \
  F(int, cuMemAlloc_v2, (CudaPointer *pointer, size_t bytes))                                                         \
  F(int, cuMemFree_v2, (CudaPointer pointer))                                                                         \
  F(int, cuMemcpyHtoD_v2, (CudaPointer to, const void *from, size_t bytes))                                           \
  F(int, cuMemcpyDtoH_v2, (void *to, CudaPointer from, size_t bytes))                                                 \
  F(int, cuMemcpyDtoDAsync_v2, (CudaPointer to, CudaPointer from, size_t bytes, void *stream))                        \
  F(int, cuStreamSynchronize, (void *stream))

// The same for NVRTC, which compiles CUDA at run time.
#define FDT_NVRTC_FUNCTIONS(F)                                                                                        \
  F(const char *, nvrtcGetErrorString, (int error))                                                                   \
  F(int, nvrtcCreateProgram,                                                                                          \
    (void **program, const char *source, const char *name, int num_headers, const char *const *headers,               \
     const char *const *header_names))                                                                                \
  F(int, nvrtcCompileProgram, (void *program, int num_options, const char *const *options))                           \
  F(int, nvrtcGetProgramLogSize, (void *program, size_t *size))                                                       \
  F(int, nvrtcGetProgramLog, (void *program, char *log))                                                              \
  F(int, nvrtcGetCUBINSize, (void *program, size_t *size))                                                            \
  F(int, nvrtcGetCUBIN, (void *program, char *image))                                                                 \
  F(int, nvrtcGetPTXSize, (void *program, size_t *size))                                                              \
  F(int, nvrtcGetPTX, (void *program, char *image))                                                                   \
  F(int, nvrtcDestroyProgram, (void **program))

#define FDT_DECLARE(result, name, arguments) result(*name) arguments;
struct CudaDriver {
  FDT_CUDA_FUNCTIONS(FDT_DECLARE)
};
struct Nvrtc {
  FDT_NVRTC_FUNCTIONS(FDT_DECLARE)
};
#undef FDT_DECLARE

// std::runtime_error where a library or one of its functions is missing: it says which, and what to install.
const CudaDriver &cuda_driver();
const Nvrtc &nvrtc();

// Files to load instead of those that the system finds; to be called before the first use.
void set_cuda_path(const std::string &path);
void set_nvrtc_path(const std::string &path);

// std::runtime_error with the driver's own words if `error` is one; `doing` completes "could not ...".
void check_cuda(int error, const char *doing);

// A GPU's primary context, which every library of a process shares. It is kept for the life of the process: kernels
// that were loaded into it are found again by it (gpu_module.cc), and would be gone with its last user.
void *primary_context(int gpu);

// Makes a context current for a while.
class CurrentContext {
 public:
  explicit CurrentContext(void *context);
  ~CurrentContext();
  CurrentContext(const CurrentContext &) = delete;
};

}  // namespace fdt

#endif  // FDT_CUDA_DRIVER_H_
