// Images of one shape in memory, with their labels: what outputs are drawn from.
#ifndef FDT_POOL_H_
#define FDT_POOL_H_

#include <memory>
#include <string>

#include "kernel.h"
#include "plan.h"

namespace fdt {

class GpuPool;  // gpu.h

// Anonymous memory in huge pages where the system has them: 20 to 35 % faster to gather from than small ones.
class HugeMemory {
 public:
  HugeMemory() = default;
  explicit HugeMemory(size_t num_bytes);  // zeros; std::bad_alloc
  ~HugeMemory();
  HugeMemory(const HugeMemory &) = delete;
  HugeMemory &operator=(HugeMemory &&other) noexcept;
  uint8_t *data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t *mapped_ = nullptr, *data_ = nullptr;
  size_t mapped_size_ = 0, size_ = 0;
};

constexpr int kHost = -1;  // in the place of a GPU's number

// Images where they are drawn from, and nowhere else: on the host, u8[n c h w], one after the other, with room to read
// shifted rows before the first and after the last; or on a GPU (u8[n h w c]), which every operator there shares.
class Pool {
 public:
  Pool(size_t n, const Shape &shape, int64_t pad, int device = kHost);
  // Makes room for n images of another set; memory is kept where it is large enough.
  void resize(size_t n, const Shape &shape, int64_t pad);
  const uint8_t *image(size_t i) const { return pixels_ + i * static_cast<size_t>(shape_.size()); }
  // u8[num h w c] in and out, images first .. first + num - 1. Different ones may be set by different threads at once.
  void set_images(size_t first, size_t num, const uint8_t *pixels);
  void get_images(size_t first, size_t num, uint8_t *pixels) const;
  void set_image(size_t i, const uint8_t *pixels);  // on the host
  void set_labels(const int64_t *labels, uint32_t num_classes);
  size_t size() const { return size_; }
  const Shape &shape() const { return shape_; }
  int64_t pad() const { return pad_; }  // the largest padding that may be asked for
  int device() const { return device_; }
  const GpuPool &on_gpu() const { return *gpu_; }
  ClassIndex classes;

 private:
  size_t size_ = 0;
  Shape shape_;
  int64_t pad_ = 0;
  uint8_t *pixels_ = nullptr;
  HugeMemory memory_;
  int device_ = kHost;
  void *context_ = nullptr;  // of the GPU
  std::shared_ptr<GpuPool> gpu_;
};

// A pool on this device that operators of this process share. `name` is what was given to `register_pool`, or a folder
// of raw shards, which are then read once, on num_threads threads, and kept as long as an operator uses them. A folder
// that has been written anew, or means another one since the working directory changed, is another pool.
// std::invalid_argument or std::runtime_error: no such pool or folder, another number of classes, other padding or
// another device needed, shards that are missing, of another size than their manifest says, or not raw.
std::shared_ptr<const Pool> find_pool(const std::string &name, int64_t pad, int num_threads, int device);

void register_pool(const std::string &name, std::shared_ptr<const Pool> pool);
void unregister_pool(const std::string &name);

// Reads a folder of raw shards: manifest.json, and its tars by their indexes.
std::shared_ptr<const Pool> read_shards(const std::string &folder, int64_t pad, int num_threads, int device = kHost);

}  // namespace fdt

#endif  // FDT_POOL_H_
