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
  explicit HugeMemory(size_t num_bytes);  // zeros; std::runtime_error
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
  // u8[num h w c] become images first .. first + num - 1. Threads may set different images at the same time.
  void set_images(size_t first, size_t num, const uint8_t *pixels);
  void set_image(size_t i, const uint8_t *pixels);  // on the host
  void set_labels(const int64_t *labels, uint32_t num_classes);
  size_t size() const { return size_; }
  const Shape &shape() const { return shape_; }
  int64_t pad() const { return pad_; }  // the largest padding that may be asked for
  int device() const { return device_; }
  const GpuPool &on_gpu() const { return *gpu_; }
  ClassIndex classes;

 private:
  size_t size_;
  Shape shape_;
  int64_t pad_;
  int device_;
  uint8_t *pixels_ = nullptr;
  HugeMemory memory_;
  void *context_ = nullptr;  // of the GPU
  std::shared_ptr<GpuPool> gpu_;
};

// Pools of this process by their names. std::invalid_argument from register_pool: the name is taken; from find_pool: no
// pool has that name, or it was made for less padding or for another device.
void register_pool(const std::string &name, std::shared_ptr<const Pool> pool);
void unregister_pool(const std::string &name);
std::shared_ptr<const Pool> find_pool(const std::string &name, int64_t pad, int device);

}  // namespace fdt

#endif  // FDT_POOL_H_
