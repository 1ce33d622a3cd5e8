#include "gpu_memory.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernel.h"
#include "superpose.h"

namespace fdt {
namespace {

constexpr size_t kAlignment = 16;  // of arrays within an upload, in bytes

}  // namespace

GpuMemory::GpuMemory(size_t num_bytes) : size_(num_bytes) {
  check_cuda(cuda_driver().cuCtxGetCurrent(&context_), "find the GPU's context");
  // Whole words of 4 bytes: the kernel reads the last image's last bytes as one.
  check_cuda(cuda_driver().cuMemAlloc_v2(&address_, round_up(std::max<size_t>(num_bytes, 1), size_t{4})),
             ("allocate " + std::to_string(num_bytes) + " bytes on the GPU").c_str());
}

GpuMemory::GpuMemory(const void *data, size_t num_bytes) : GpuMemory(num_bytes) { write(data, num_bytes, 0); }

void GpuMemory::write(const void *data, size_t num_bytes, size_t at) {
  check_cuda(cuda_driver().cuMemcpyHtoD_v2(address_ + at, data, num_bytes), "copy to the GPU");
  // The call may come back while the last bytes are on their way, and other streams do not wait for them.
  check_cuda(cuda_driver().cuStreamSynchronize(nullptr), "copy to the GPU");
}

void GpuMemory::copy_from_gpu(const uint8_t *from, size_t num_bytes, size_t at, void *stream) {
  check_cuda(cuda_driver().cuMemcpyDtoDAsync_v2(address_ + at, reinterpret_cast<CudaPointer>(from), num_bytes, stream),
             "copy on the GPU");
}

// When the process ends the driver may be gone before us, and its memory with it; so errors mean nothing here.
GpuMemory::~GpuMemory() {
  if (!address_ || cuda_driver().cuCtxPushCurrent_v2(context_)) return;
  cuda_driver().cuMemFree_v2(address_);  // waits for the GPU
  cuda_driver().cuCtxPopCurrent_v2(&context_);
}

GpuMemory &GpuMemory::operator=(GpuMemory &&other) noexcept {
  std::swap(address_, other.address_);
  std::swap(size_, other.size_);
  std::swap(context_, other.context_);
  return *this;
}

size_t GpuUpload::add(const void *data, size_t num_bytes) {
  const size_t place = words_.size() * sizeof(uint32_t);
  words_.resize(words_.size() + round_up(num_bytes, kAlignment) / sizeof(uint32_t));
  std::memcpy(reinterpret_cast<char *>(words_.data()) + place, data, num_bytes);
  return place;
}

CudaPointer GpuUpload::send(const GpuKernels &kernels, void *stream) {
  const size_t num_bytes = words_.size() * sizeof(uint32_t);
  // Launches of an earlier batch may still read what is there; on one stream they come first, on another they might
  // not.
  if (used_ && stream != stream_) check_cuda(cuda_driver().cuCtxSynchronize(), "wait for another stream");
  if (memory_.size() < num_bytes) {
    if (used_) check_cuda(cuda_driver().cuStreamSynchronize(stream), "wait for the stream");
    memory_ = GpuMemory();
    memory_ = GpuMemory(num_bytes + num_bytes / 2);
  }
  used_ = true;
  stream_ = stream;
  gpu::Chunk chunk;
  for (size_t at = 0; at < words_.size(); at += gpu::kChunkWords) {
    uint32_t num = static_cast<uint32_t>(std::min<size_t>(words_.size() - at, gpu::kChunkWords));
    std::copy_n(&words_[at], num, chunk.words);
    CudaPointer to = memory_.address() + at * sizeof(uint32_t);
    void *arguments[] = {&to, &num, &chunk};
    check_cuda(cuda_driver().cuLaunchKernel(kernels.store, 1, 1, 1, 256, 1, 1, 0, stream, arguments, nullptr),
               "launch the kernel that stores a batch's ids");
  }
  return memory_.address();
}

}  // namespace fdt
