#include "gpu_module.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "cuda_driver.h"

// The sources travel in the library: the assembler puts them there. It finds them with -I<this folder>.
#define FDT_EMBED(symbol, file)                                                            \
  asm(".pushsection .rodata\n" #symbol ":\n.incbin \"" file "\"\n.byte 0\n.popsection\n"); \
  extern "C" __attribute__((visibility("hidden"))) const char symbol[]

FDT_EMBED(fdt_text_philox, "philox.h");
FDT_EMBED(fdt_text_mixing, "mixing.h");
FDT_EMBED(fdt_text_superpose_h, "superpose.h");
FDT_EMBED(fdt_text_superpose_cu, "superpose.cu");

namespace fdt {
namespace {

class Program {
 public:
  Program() = default;
  Program(const std::string &source, const std::string &arch) : Program() {  // destroyed where this throws
    const char *headers[] = {fdt_text_philox, fdt_text_mixing, fdt_text_superpose_h};
    const char *names[] = {"philox.h", "mixing.h", "superpose.h"};
    check(nvrtc().nvrtcCreateProgram(&program_, source.c_str(), "superpose.cu", 3, headers, names), "");
    const std::string architecture = "--gpu-architecture=" + arch;
    const char *options[] = {architecture.c_str(), "--std=c++17"};
    const int error = nvrtc().nvrtcCompileProgram(program_, 2, options);
    check(error, error ? fetch(nvrtc().nvrtcGetProgramLogSize, nvrtc().nvrtcGetProgramLog) : "");
  }
  ~Program() { nvrtc().nvrtcDestroyProgram(&program_); }
  Program(const Program &) = delete;
  std::string machine_code() { return fetch(nvrtc().nvrtcGetCUBINSize, nvrtc().nvrtcGetCUBIN); }
  std::string ptx() { return fetch(nvrtc().nvrtcGetPTXSize, nvrtc().nvrtcGetPTX); }

 private:
  std::string fetch(int (*size_of)(void *, size_t *), int (*get)(void *, char *)) {
    size_t size = 0;
    check(size_of(program_, &size), "");
    std::string result(size, '\0');
    check(get(program_, &result[0]), "");
    return result;
  }

  static void check(int error, const std::string &log) {
    if (!error) return;
    throw std::runtime_error(std::string("NVRTC could not compile the GPU kernel: ") +
                             nvrtc().nvrtcGetErrorString(error) + (log.empty() ? "" : "\n" + log));
  }

  void *program_ = nullptr;
};

GpuKernels load_kernels(int c, int channels) {
  int device = 0, major = 0, minor = 0;
  check_cuda(cuda_driver().cuCtxGetDevice(&device), "find the current GPU");
  check_cuda(cuda_driver().cuDeviceGetAttribute(&major, 75, device), "ask the GPU for its compute capability");
  check_cuda(cuda_driver().cuDeviceGetAttribute(&minor, 76, device), "ask the GPU for its compute capability");
  nvrtc();  // or an error that says how to get it
  void *module = nullptr;
  int error = 1;
  std::string reason;
  // Machine code for this GPU; where NVRTC does not know it, or is newer than the driver, PTX of an older architecture,
  // which the driver compiles.
  for (const std::string &arch : {"sm_" + std::to_string(10 * major + minor), std::string("compute_80")}) {
    try {
      if (!(error = cuda_driver().cuModuleLoadData(&module, compile_kernels(arch, c, channels).c_str()))) break;
    } catch (const std::runtime_error &unknown) {
      reason += std::string("; ") + unknown.what();
    }
  }
  const std::string advice = "install NVRTC of the driver's CUDA version; for a GPU older than Ampere, 12";
  check_cuda(error, ("load the GPU kernel (" + advice + reason + ")").c_str());
  GpuKernels kernels;
  auto look_up = [&](void *&function, const std::string &name) {
    check_cuda(cuda_driver().cuModuleGetFunction(&function, module, name.c_str()), "find a function in the GPU kernel");
  };
  look_up(kernels.store, "fdt_store");
  look_up(kernels.superpose, "fdt_superpose_" + std::to_string(c) + "_" + std::to_string(channels));
  return kernels;
}

}  // namespace

std::string compile_kernels(const std::string &arch, int c, int channels) {
  const std::string wanted = "\nFDT_SUPERPOSE(" + std::to_string(c) + ", " + std::to_string(channels) + ")\n";
  Program program(fdt_text_superpose_cu + wanted, arch);
  return arch.rfind("sm_", 0) == 0 ? program.machine_code() : program.ptx();
}

const GpuKernels &gpu_kernels(int c, int channels) {
  static std::mutex mutex;
  static std::map<std::tuple<void *, int, int>, GpuKernels> loaded;
  void *context = nullptr;
  check_cuda(cuda_driver().cuCtxGetCurrent(&context), "find the GPU's context");
  if (!context) throw std::runtime_error("no GPU is in use by this thread: expected a current CUDA context");
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(context, c, channels);
  auto found = loaded.find(key);
  if (found == loaded.end()) found = loaded.emplace(key, load_kernels(c, channels)).first;
  return found->second;
}

}  // namespace fdt
