#include "cuda_driver.h"

#include <dlfcn.h>
#include <glob.h>

#include <stdexcept>
#include <vector>

namespace fdt {
namespace {

std::string cuda_path, nvrtc_path;

// The given file, or else the first of the system's that there is. It is never closed: its threads may outlive us.
void *open_library(const std::string &given, std::vector<std::string> names, const std::string &advice) {
  std::string reasons;
  if (!given.empty()) names = {given};
  for (const std::string &name : names) {
    if (void *library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    reasons += std::string("\n    ") + dlerror();
  }
  throw std::runtime_error(advice + reasons);
}

template <typename Function>
void look_up(void *library, const char *name, Function &function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) throw std::runtime_error(std::string(name) + " is missing: the NVIDIA driver or NVRTC is too old");
}

#define FDT_LOOK_UP(result, name, arguments) look_up(library, #name, table.name);

CudaDriver load_driver() {
  void *library = open_library(cuda_path, {"libcuda.so.1"},
                               "the GPU engine needs NVIDIA's driver, and libcuda.so.1 does not load:");
  CudaDriver table;
  FDT_CUDA_FUNCTIONS(FDT_LOOK_UP)
  const int error = table.cuInit(0);
  if (error) throw std::runtime_error("the NVIDIA driver does not start (cuInit: error " + std::to_string(error) + ")");
  return table;
}

// NVRTC looks for the file of its built-in functions by name alone, which fails where it lies in a wheel's folder; so
// the one beside it is loaded first.
void load_builtins(const Nvrtc &table) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void *>(table.nvrtcCompileProgram), &info) || !info.dli_fname) return;
  const std::string file = info.dli_fname, folder = file.substr(0, file.rfind('/') + 1);
  glob_t found;
  if (!folder.empty() && !glob((folder + "libnvrtc-builtins.so.*").c_str(), 0, nullptr, &found)) {
    for (size_t i = 0; i < found.gl_pathc; i++) dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
    globfree(&found);
  }
}

Nvrtc load_nvrtc() {
  void *library = open_library(
      nvrtc_path, {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"},
      "the GPU engine needs NVRTC (pip install nvidia-cuda-nvrtc, or nvidia-cuda-nvrtc-cu12), which does not load:");
  Nvrtc table;
  FDT_NVRTC_FUNCTIONS(FDT_LOOK_UP)
  load_builtins(table);
  return table;
}

#undef FDT_LOOK_UP

}  // namespace

void set_cuda_path(const std::string &path) { cuda_path = path; }
void set_nvrtc_path(const std::string &path) { nvrtc_path = path; }

const CudaDriver &cuda_driver() {
  static const CudaDriver table = load_driver();
  return table;
}

const Nvrtc &nvrtc() {
  static const Nvrtc table = load_nvrtc();
  return table;
}

void check_cuda(int error, const char *doing) {
  if (!error) return;
  const char *text = nullptr;
  if (cuda_driver().cuGetErrorString(error, &text) || !text) text = "unknown error";
  throw std::runtime_error(std::string("could not ") + doing + ": " + text + " (CUDA error " + std::to_string(error) +
                           ")");
}

void *primary_context(int gpu) {
  int device = 0;
  void *context = nullptr;
  check_cuda(cuda_driver().cuDeviceGet(&device, gpu), "find the GPU");
  check_cuda(cuda_driver().cuDevicePrimaryCtxRetain(&context, device), "use the GPU");
  return context;
}

CurrentContext::CurrentContext(void *context) {
  check_cuda(cuda_driver().cuCtxPushCurrent_v2(context), "use the GPU's context");
}

CurrentContext::~CurrentContext() {
  void *context;
  cuda_driver().cuCtxPopCurrent_v2(&context);
}

}  // namespace fdt
