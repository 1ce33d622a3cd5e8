// A driver (libcuda) and an NVRTC for machines without a GPU: the real launcher (csrc/gpu.cc) loads this in their place
// and runs the real kernels (csrc/superpose.cu) on the host. Device memory is the heap's, each piece exactly as long as
// it was asked for, so AddressSanitizer sees what is read or written beside it.
//
// It does what the launcher needs and no more; launches are done when they return, so it cannot show what goes wrong
// when they are not.
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "cuda_on_host.h"

#include "superpose.cu"

FDT_SUPERPOSE(1, 1)
FDT_SUPERPOSE(1, 2)
FDT_SUPERPOSE(1, 3)
FDT_SUPERPOSE(1, 4)
FDT_SUPERPOSE(2, 2)
FDT_SUPERPOSE(3, 3)
FDT_SUPERPOSE(4, 4)

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kInvalidImage = 200, kInvalidContext = 201, kNotFound = 500;

struct Kernel {
  std::string name;
  std::function<void(void **)> call;
};

template <typename T>
T &argument(void *pointer) {
  return *static_cast<T *>(pointer);
}

void store(void **a) {
  fdt_store(argument<uint32_t *>(a[0]), argument<uint32_t>(a[1]), argument<fdt::gpu::Chunk>(a[2]));
}

template <void (*kernel)(fdt::gpu::Parameters)>
void superpose(void **a) {
  kernel(argument<fdt::gpu::Parameters>(a[0]));
}

Kernel kernels[] = {
    {"fdt_store", store},
    {"fdt_superpose_1_1", superpose<fdt_superpose_1_1>},
    {"fdt_superpose_1_2", superpose<fdt_superpose_1_2>},
    {"fdt_superpose_1_3", superpose<fdt_superpose_1_3>},
    {"fdt_superpose_1_4", superpose<fdt_superpose_1_4>},
    {"fdt_superpose_2_2", superpose<fdt_superpose_2_2>},
    {"fdt_superpose_3_3", superpose<fdt_superpose_3_3>},
    {"fdt_superpose_4_4", superpose<fdt_superpose_4_4>},
};

int context, module;
thread_local std::vector<void *> contexts;
std::mutex memory_mutex;
std::map<unsigned long long, size_t> memory;
bool backwards = false;
long long num_launches = 0, num_allocations = 0, num_synchronizations = 0, uploaded_bytes = 0;
long long allocation_limit = -1;
std::string refused_code;  // "cubin", "cubin ptx" or none

}  // namespace

// What the tests ask: how often something was done, and in which order threads run.
EXPORT void emulation_counts(long long *counts) {
  counts[0] = num_launches;
  counts[1] = num_allocations;
  counts[2] = num_synchronizations;
  counts[3] = static_cast<long long>(memory.size());
  counts[4] = uploaded_bytes;
}
EXPORT void emulation_run_backwards(int yes) { backwards = yes != 0; }
EXPORT void emulation_refuse_code(const char *kinds) { refused_code = kinds; }
EXPORT void emulation_limit_allocations(long long bytes) { allocation_limit = bytes; }

EXPORT int cuInit(unsigned) { return 0; }
EXPORT int cuGetErrorString(int code, const char **text) {
  *text = code == kOutOfMemory      ? "out of memory"
          : code == kInvalidContext ? "invalid device context"
                                    : "invalid argument";
  return 0;
}
EXPORT int cuDeviceGet(int *device, int number) {
  *device = number;
  return number == 0 ? 0 : 101;
}
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int) {
  *value = attribute == 75 ? 9 : 0;  // compute capability 9.0
  return attribute == 75 || attribute == 76 ? 0 : kInvalidValue;
}
EXPORT int cuCtxGetCurrent(void **current) {
  *current = contexts.empty() ? nullptr : contexts.back();
  return 0;
}
EXPORT int cuCtxGetDevice(int *device) {
  *device = 0;
  return contexts.empty() ? kInvalidContext : 0;
}
EXPORT int cuCtxPushCurrent_v2(void *pushed) {
  contexts.push_back(pushed);
  return 0;
}
EXPORT int cuCtxPopCurrent_v2(void **popped) {
  if (contexts.empty()) return kInvalidContext;
  *popped = contexts.back();
  contexts.pop_back();
  return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void **retained, int) {
  *retained = &context;
  return 0;
}
EXPORT int cuModuleLoadData(void **loaded, const void *image) {
  if (refused_code.find(static_cast<const char *>(image)) != std::string::npos) return kInvalidImage;
  *loaded = &module;
  return contexts.empty() ? kInvalidContext : 0;
}
EXPORT int cuModuleGetFunction(void **function, void *, const char *name) {
  for (Kernel &kernel : kernels)
    if (kernel.name == name) return *function = &kernel, 0;
  return kNotFound;
}
EXPORT int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned, unsigned block_x, unsigned,
                          unsigned, unsigned shared_bytes, void *, void **parameters, void **) {
  if (contexts.empty()) return kInvalidContext;
  if (!grid_x || !grid_y || grid_y > 65535 || !block_x || block_x > 1024 || shared_bytes > 48 << 10)
    return kInvalidValue;
  num_launches++;
  emulation::run({grid_x, grid_y}, block_x, shared_bytes, backwards,
                 [&] { static_cast<Kernel *>(function)->call(parameters); });
  return 0;
}
EXPORT int cuMemAlloc_v2(unsigned long long *pointer, size_t bytes) {
  if (contexts.empty()) return kInvalidContext;
  if (!bytes) return kInvalidValue;
  if (allocation_limit >= 0 && static_cast<long long>(bytes) > allocation_limit) return kOutOfMemory;
  void *allocated = std::malloc(bytes);
  if (!allocated) return kOutOfMemory;
  *pointer = reinterpret_cast<unsigned long long>(allocated);
  const std::lock_guard<std::mutex> lock(memory_mutex);
  memory[*pointer] = bytes;
  num_allocations++;
  return 0;
}
EXPORT int cuMemFree_v2(unsigned long long pointer) {
  if (contexts.empty()) return kInvalidContext;
  const std::lock_guard<std::mutex> lock(memory_mutex);
  if (!memory.erase(pointer)) return kInvalidValue;
  std::free(reinterpret_cast<void *>(pointer));
  return 0;
}
EXPORT int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t bytes) {
  if (contexts.empty()) return kInvalidContext;
  const std::lock_guard<std::mutex> lock(memory_mutex);
  std::memcpy(reinterpret_cast<void *>(to), from, bytes);
  uploaded_bytes += static_cast<long long>(bytes);
  return 0;
}
EXPORT int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t bytes) {
  std::memcpy(to, reinterpret_cast<const void *>(from), bytes);
  return 0;
}
EXPORT int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void *) {
  std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes);
  return 0;
}
EXPORT int cuStreamSynchronize(void *) { return num_synchronizations++, 0; }
EXPORT int cuCtxSynchronize() { return num_synchronizations++, 0; }

// NVRTC, which has nothing to do here.
EXPORT const char *nvrtcGetErrorString(int) { return "NVRTC_ERROR"; }
EXPORT int nvrtcCreateProgram(void **program, const char *, const char *, int, const char *const *,
                              const char *const *) {
  return *program = &module, 0;
}
EXPORT int nvrtcCompileProgram(void *, int, const char *const *) { return 0; }
EXPORT int nvrtcGetProgramLogSize(void *, size_t *size) { return *size = 1, 0; }
EXPORT int nvrtcGetProgramLog(void *, char *log) { return *log = 0, 0; }
EXPORT int nvrtcGetCUBINSize(void *, size_t *size) { return *size = sizeof "cubin", 0; }
EXPORT int nvrtcGetCUBIN(void *, char *image) { return std::memcpy(image, "cubin", sizeof "cubin"), 0; }
EXPORT int nvrtcGetPTXSize(void *, size_t *size) { return *size = sizeof "ptx", 0; }
EXPORT int nvrtcGetPTX(void *, char *image) { return std::memcpy(image, "ptx", sizeof "ptx"), 0; }
EXPORT int nvrtcDestroyProgram(void **) { return 0; }
