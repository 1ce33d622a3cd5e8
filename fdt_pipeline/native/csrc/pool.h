// Images of one shape in memory, with their labels: what outputs are drawn from.
#ifndef FDT_POOL_H_
#define FDT_POOL_H_

#include <memory>
#include <string>

#include "kernel.h"
#include "plan.h"

namespace fdt {

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

// u8[n c h w], one image after the other, with room to read shifted rows before the first and after the last.
class Pool {
 public:
  Pool(size_t n, const Shape &shape, int64_t pad);
  // Makes room for n images of another set; memory is kept where it is large enough.
  void resize(size_t n, const Shape &shape, int64_t pad);
  const uint8_t *image(size_t i) const { return pixels_ + i * static_cast<size_t>(shape_.size()); }
  // u8[h w c] in and out. Different images may be set by different threads at once.
  void set_image(size_t i, const uint8_t *pixels);
  void get_image(size_t i, uint8_t *pixels) const;
  size_t size() const { return size_; }
  const Shape &shape() const { return shape_; }
  int64_t pad() const { return pad_; }  // the largest padding that may be asked for
  ClassIndex classes;

 private:
  size_t size_ = 0;
  Shape shape_;
  int64_t pad_ = 0;
  uint8_t *pixels_ = nullptr;
  HugeMemory memory_;
};

// A pool that operators of this process share. `name` is what was given to `register_pool`, or a folder of raw shards,
// which are then read once, on num_threads threads, and kept as long as an operator uses them. A folder that has been
// written anew, or means another one since the working directory changed, is another pool.
// std::invalid_argument or std::runtime_error: no such pool or folder, another number of classes, other padding needed,
// shards that are missing, of another size than their manifest says, or not raw.
std::shared_ptr<const Pool> find_pool(const std::string &name, int64_t pad, int num_threads);

void register_pool(const std::string &name, std::shared_ptr<const Pool> pool);
void unregister_pool(const std::string &name);

// Reads a folder of raw shards: manifest.json, and its tars by their indexes.
std::shared_ptr<const Pool> read_shards(const std::string &folder, int64_t pad, int num_threads);

}  // namespace fdt

#endif  // FDT_POOL_H_
