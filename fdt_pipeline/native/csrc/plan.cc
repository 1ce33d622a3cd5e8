#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "philox.h"

namespace fdt {

std::string printable(std::string text) {
  for (char &c : text)
    if (c < ' ' || c > '~') c = '?';
  return text.size() <= 40 ? text : text.substr(0, 40) + "..";
}

void ClassIndex::assign(const int64_t *given, size_t n, uint32_t classes) {
  if (n > UINT32_MAX - 1) throw std::invalid_argument("a pool holds up to 2^32 - 2 images, got " + std::to_string(n));
  num_classes = classes;
  labels.resize(n);
  counts.assign(classes, 0);
  for (size_t i = 0; i < n; i++) {
    if (given[i] < 0 || given[i] >= classes)
      throw std::invalid_argument("label " + std::to_string(given[i]) + " of sample " + std::to_string(i) +
                                  " is outside [0, " + std::to_string(classes) + ")");
    labels[i] = static_cast<uint32_t>(given[i]);
    counts[labels[i]]++;
  }
  starts.resize(classes);
  std::exclusive_scan(counts.begin(), counts.end(), starts.begin(), 0u);
  num_distinct = static_cast<uint32_t>(std::count_if(counts.begin(), counts.end(), [](uint32_t c) { return c > 0; }));
  by_class.resize(n);
  std::vector<uint32_t> next = starts;
  for (size_t i = 0; i < n; i++) by_class[next[labels[i]]++] = static_cast<uint32_t>(i);
}

uint32_t PlanOptions::lowest(const ClassIndex &classes) const { return std::min(min_images, classes.num_distinct); }

uint32_t PlanOptions::highest(const ClassIndex &classes) const {
  return std::min(max_images ? max_images : classes.num_classes, classes.num_distinct);
}

namespace {

template <typename T>
std::vector<T> from_hex(const std::string &text) {
  std::vector<unsigned char> bytes(text.size() / 2);
  auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    throw std::invalid_argument("series: expected hexadecimal digits (0-9, a-f)");
  };
  for (size_t i = 0; i < bytes.size(); i++)
    bytes[i] = static_cast<unsigned char>(16 * digit(text[2 * i]) + digit(text[2 * i + 1]));
  std::vector<T> values(bytes.size() / sizeof(T));
  if (text.size() != 2 * sizeof(T) * values.size())
    throw std::invalid_argument("series: cut in the middle of a number");
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

template <typename T>
void check_numbers(const std::vector<T> &values) {
  for (T value : values)
    if (!std::isfinite(value) || value < 0) throw std::invalid_argument("series: weights must be finite, 0 or more");
}

}  // namespace

WeightSeries::WeightSeries(const std::string &text, uint32_t most) {
  size_t given = most;
  if (text == "harmonic") {
    long double sum = 0;
    for (uint32_t i = 1; i <= most; i++) {
      terms_.push_back(1.0 / i);
      sums_.push_back(static_cast<double>(sum += 1.0L / i));
    }
  } else if (text.rfind("terms:", 0) == 0) {
    const size_t middle = text.find(':', 6);
    if (middle == std::string::npos) throw std::invalid_argument("series: \"terms:\" needs terms and sums");
    terms_ = from_hex<double>(text.substr(6, middle - 6));
    sums_ = from_hex<double>(text.substr(middle + 1));
    given = std::min(terms_.size(), sums_.size());
  } else if (text.rfind("table:", 0) == 0) {
    table_ = from_hex<float>(text.substr(6));
    for (given = 0; (given + 1) * (given + 2) / 2 <= table_.size();) given++;
  } else {
    throw std::invalid_argument("series must be \"harmonic\", or what fdt_pipeline.series_argument returns, got \"" +
                                text.substr(0, 40) + "\"");
  }
  if (given < most)
    throw std::invalid_argument("series has weights for sums of up to " + std::to_string(given) +
                                " images, but up to " + std::to_string(most) +
                                " are superposed: make it for that number, or lower max_images");
  check_numbers(terms_);
  check_numbers(sums_);
  for (double sum : sums_)
    if (sum == 0) throw std::invalid_argument("series: sums must be finite, above 0");
  check_numbers(table_);
}

namespace {

// Up to so many classes are searched in one block: 8 registers of AVX-512.
constexpr uint32_t kOneBlock = 128;

uint32_t lanes(uint32_t n) { return round_up(n, static_cast<uint32_t>(kLanes)); }

}  // namespace

void PlanDrawer::reset(const PlanOptions &options, const ClassIndex &classes) {
  options_ = options;
  classes_ = &classes;
  lowest_ = options.lowest(classes);
  highest_ = options.highest(classes);
  const uint32_t n = classes.num_classes;
  sums_.width = lanes(n <= kOneBlock ? n : static_cast<uint32_t>(std::sqrt(n)));
  if (n <= kOneBlock && sums_.width > 2 * kLanes) sums_.width = n <= 4 * kLanes ? 4 * kLanes : 8 * kLanes;
  sums_.num_blocks = (n + sums_.width - 1) / sums_.width;
  const size_t num_within = size_t{sums_.num_blocks} * sums_.width;
  memory_.assign(num_within + lanes(sums_.num_blocks), 0);
  sums_.within = memory_.data();
  sums_.blocks = memory_.data() + num_within;
  uint32_t total = 0;
  for (size_t block = 0; block < lanes(sums_.num_blocks); block++) {
    uint32_t sum = 0;
    for (size_t i = block * sums_.width; i < (block + 1) * sums_.width && i < num_within; i++)
      sums_.within[i] = sum += i < n ? classes.counts[i] : 0;
    sums_.blocks[block] = total += sum;
  }
  untouched_ = memory_;
}

void PlanDrawer::put_back(uint32_t k) {
  if (k >= sums_.num_blocks) {
    std::memcpy(memory_.data(), untouched_.data(), memory_.size() * sizeof(uint32_t));
    return;
  }
  const size_t width = sums_.width, num_within = sums_.num_blocks * width;
  for (uint32_t i = 0; i < k; i++) {
    const size_t at = labels_[i] / width * width;
    std::memcpy(&memory_[at], &untouched_[at], width * sizeof(uint32_t));
  }
  std::copy(untouched_.begin() + static_cast<std::ptrdiff_t>(num_within), untouched_.end(), sums_.blocks);
}

uint32_t PlanDrawer::draw(const Id &id, std::vector<Constituent> &plan) {
  const Kernels &native = kernels();
  const uint32_t index = id.index, shifts = 2 * options_.pad + 1;
  const uint32_t stride = round_up(highest_ + 1, kPhiloxBlocks);
  words_.resize(4 * size_t{stride});
  labels_.resize(highest_);
  ranks_.resize(highest_);
  native.philox_blocks(options_.seed, kStreamPlan, id.epoch, index, 0, kPhiloxBlocks, stride, words_.data());
  const uint32_t *words[4];
  for (size_t i = 0; i < 4; i++) words[i] = words_.data() + i * stride;
  uint32_t k = lowest_ + bounded64(words[0][0], words[1][0], highest_ - lowest_ + 1);
  if (words[2][0] >= options_.mix_threshold) k = 1;
  if (k >= kPhiloxBlocks)  // the others came with block 0
    native.philox_blocks(options_.seed, kStreamPlan, id.epoch, index, kPhiloxBlocks, k + 1 - kPhiloxBlocks, stride,
                         words_.data() + kPhiloxBlocks);
  const bool led = id.leader >= 0;
  uint32_t unused = static_cast<uint32_t>(classes_->size());
  if (led) {
    labels_[0] = classes_->labels[static_cast<size_t>(id.leader)];
    if (k > 1) native.take_class(sums_, labels_[0], classes_->counts[labels_[0]]);
    unused -= classes_->counts[labels_[0]];
  }
  if (!led || k > 1) {
    native.draw_classes(sums_, classes_->counts.data(), unused, words[0] + 1, stride, led, k, labels_.data(),
                        ranks_.data());
    put_back(k);
  }
  for (uint32_t i = 0; i < k; i++) {
    const uint32_t label = labels_[i];
    const bool leads = led && i == 0;
    const uint32_t image =
        leads ? static_cast<uint32_t>(id.leader) : classes_->by_class[classes_->starts[label] + ranks_[i]];
    plan.push_back({image, label, static_cast<int32_t>(bounded32(words[2][i + 1], shifts)),
                    static_cast<int32_t>(bounded32(words[3][i + 1], shifts)), options_.flip && (words[3][i + 1] & 1)});
  }
  return k;
}

std::vector<int64_t> epoch_order(uint64_t seed, uint32_t epoch, size_t n) {
  std::vector<std::pair<uint64_t, int64_t>> keys(n);
  for (size_t i = 0; i < n; i++) {
    const Words words = random_words(seed, kStreamEpochOrder, epoch, static_cast<uint32_t>(i), 0);
    keys[i] = {(static_cast<uint64_t>(words.w[0]) << 32) | words.w[1], static_cast<int64_t>(i)};
  }
  std::sort(keys.begin(), keys.end());
  std::vector<int64_t> order(n);
  for (size_t i = 0; i < n; i++) order[i] = keys[i].second;
  return order;
}

}  // namespace fdt
