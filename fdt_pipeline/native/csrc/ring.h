// The last images of a stream, from which outputs are drawn: image number p lies in slot p % capacity.
#ifndef FDT_RING_H_
#define FDT_RING_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fdt {

// Their labels, and which of them are there. The images themselves are in a Pool, or in the GPU's memory.
class Ring {
 public:
  explicit Ring(size_t capacity) : capacity_(capacity) {}
  size_t capacity() const { return capacity_; }
  size_t slot(uint64_t position) const { return static_cast<size_t>(position % capacity_); }

  // Images position .. position + num - 1 of a stream come in. A stream begins at 0. Where images are put in at a
  // position that is neither the next nor that of an image that is there, those of before are forgotten.
  // std::invalid_argument if they are more than the capacity.
  void put(uint64_t position, const int64_t *labels, size_t num) {
    if (num > capacity_)
      throw std::invalid_argument("a ring of " + std::to_string(capacity_) + " images is too small for the " +
                                  std::to_string(num) + " that come in at once: pass a larger ring");
    const bool goes_on = position > 0 && begin_ <= position && position <= next_;
    begin_ = goes_on ? std::max(begin_, next_ - std::min<uint64_t>(capacity_, next_)) : position;
    next_ = position + num;
    labels_.resize(static_cast<size_t>(std::min<uint64_t>(capacity_, next_)), 0);
    for (size_t i = 0; i < num; i++) labels_[slot(position + i)] = labels[i];
  }

  // std::invalid_argument unless all the stream's last images are there, as many as there is room for.
  void check_whole() const {
    const uint64_t first = next_ - std::min<uint64_t>(capacity_, next_);
    if (begin_ > first)
      throw std::invalid_argument(
          "the ring lacks images " + std::to_string(first) + " to " + std::to_string(begin_ - 1) +
          " of the stream, which the next outputs may be drawn from: put them in first, with index -1 in their ids (a "
          "checkpoint of DALI does not hold them)");
  }

  // Of each slot.
  const std::vector<int64_t> &labels() const { return labels_; }

 private:
  size_t capacity_;
  uint64_t begin_ = 0, next_ = 0;  // images begin_ .. next_ - 1 of the stream have come in, one after the other
  std::vector<int64_t> labels_;
};

}  // namespace fdt

#endif  // FDT_RING_H_
