#include "pool.h"

#include <sys/mman.h>

#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "gpu.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, size)
#define ASAN_UNPOISON_MEMORY_REGION(begin, size)
#endif

namespace fdt {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

HugeMemory::HugeMemory(size_t num_bytes) : size_(num_bytes) {
  mapped_size_ = num_bytes + 2 * kHugePage;
  void *mapped = mmap(nullptr, mapped_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED)
    throw std::runtime_error("out of memory: there is no room for " + std::to_string(num_bytes) + " bytes of images");
  mapped_ = static_cast<uint8_t *>(mapped);
  const auto address = reinterpret_cast<uintptr_t>(mapped_);
  data_ = mapped_ + ((address + kHugePage - 1) / kHugePage * kHugePage - address);
#ifdef MADV_HUGEPAGE
  // Only asked for: a system without them serves small pages.
  if (num_bytes >= kHugePage) madvise(data_, (num_bytes + kHugePage - 1) / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  // AddressSanitizer knows nothing of mapped memory by itself.
  ASAN_POISON_MEMORY_REGION(mapped_, static_cast<size_t>(data_ - mapped_));
  ASAN_POISON_MEMORY_REGION(data_ + size_, mapped_size_ - size_ - static_cast<size_t>(data_ - mapped_));
}

HugeMemory::~HugeMemory() {
  if (!mapped_) return;
  ASAN_UNPOISON_MEMORY_REGION(mapped_, mapped_size_);
  munmap(mapped_, mapped_size_);
}

HugeMemory &HugeMemory::operator=(HugeMemory &&other) noexcept {
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(mapped_size_, other.mapped_size_);
  std::swap(size_, other.size_);
  return *this;
}

Pool::Pool(size_t n, const Shape &shape, int64_t pad, int device)
    : size_(n), shape_(shape), pad_(pad), device_(device) {
  if (device == kHost) {
    resize(n, shape, pad);
    return;
  }
  context_ = primary_context(device);
  const CurrentContext current(context_);
  gpu_ = std::make_shared<GpuPool>(n, shape);
}

void Pool::resize(size_t n, const Shape &shape, int64_t pad) {
  const size_t guard = static_cast<size_t>((guard_bytes(pad) + 63) / 64 * 64);
  const size_t needed = n * static_cast<size_t>(shape.size()) + 2 * guard;
  if (memory_.size() < needed) memory_ = HugeMemory(needed);
  size_ = n;
  shape_ = shape;
  pad_ = pad;
  pixels_ = memory_.data() + guard;
}

void Pool::set_image(size_t i, const uint8_t *pixels) {
  kernels().to_planes(pixels, shape_, pixels_ + i * static_cast<size_t>(shape_.size()));
}

void Pool::set_images(size_t first, size_t num, const uint8_t *pixels) {
  if (gpu_) {
    const CurrentContext current(context_);
    return gpu_->set_images(first, num, pixels);
  }
  for (size_t i = 0; i < num; i++) set_image(first + i, pixels + i * static_cast<size_t>(shape_.size()));
}

void Pool::set_labels(const int64_t *labels, uint32_t num_classes) {
  classes.assign(labels, size_, num_classes);
  if (!gpu_) return;
  const CurrentContext current(context_);
  gpu_->set_classes(classes);
}

namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<const Pool>> pools;
};

// Never destroyed: operators may outlive the static objects of this library when the interpreter exits.
Registry &registry() {
  static Registry *const only = new Registry;
  return *only;
}

std::string name_of(int device) { return device == kHost ? "the host" : "GPU " + std::to_string(device); }

}  // namespace

void register_pool(const std::string &name, std::shared_ptr<const Pool> pool) {
  Registry &all = registry();
  std::lock_guard<std::mutex> lock(all.mutex);
  if (!all.pools.emplace(name, std::move(pool)).second)
    throw std::invalid_argument("this process has a pool \"" + name + "\" already: close it, or choose another name");
}

void unregister_pool(const std::string &name) {
  Registry &all = registry();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.pools.erase(name);
}

std::shared_ptr<const Pool> find_pool(const std::string &name, int64_t pad, int device) {
  Registry &all = registry();
  std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.pools.find(name);
  if (found == all.pools.end())
    throw std::invalid_argument("this process has no pool \"" + printable(name) +
                                "\": load one with fdt_pipeline.load_pool(shards), keep it, and pass pool=its .name (a "
                                "pipeline that is deserialized needs a pool that was loaded under the same name)");
  const std::shared_ptr<const Pool> &pool = found->second;
  if (pool->pad() < pad)
    throw std::invalid_argument("pool \"" + name + "\" was loaded for a pad of up to " + std::to_string(pool->pad()) +
                                " pixels, got " + std::to_string(pad) + ": load it with pad=" + std::to_string(pad));
  if (pool->device() != device)
    throw std::invalid_argument("pool \"" + name + "\" is in the memory of " + name_of(pool->device()) +
                                ", the operator is for " + name_of(device) + ": load a pool there");
  return pool;
}

}  // namespace fdt
