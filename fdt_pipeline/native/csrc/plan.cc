#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <locale>
#include <numeric>
#include <sstream>
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

uint32_t Branch::lowest(uint32_t num_distinct) const { return unique ? std::min(min_images, num_distinct) : min_images; }

uint32_t Branch::highest(uint32_t num_distinct) const {
  const uint32_t most = max_images ? max_images : std::max(min_images, num_distinct);
  return unique ? std::min(most, num_distinct) : most;
}

bool PlanOptions::is_led() const {
  return std::any_of(branches.begin(), branches.end(), [](const Branch &branch) { return branch.led; });
}

uint32_t PlanOptions::highest(uint32_t num_distinct) const {
  uint32_t most = 1;
  for (const Branch &branch : branches) most = std::max(most, branch.highest(num_distinct));
  return most;
}

uint32_t PlanOptions::typical(uint32_t num_distinct) const {
  double sum = 0;
  uint64_t begin = 0;
  for (const Branch &branch : branches) {
    const double mixed = static_cast<double>(branch.mixed_end - begin);
    sum += mixed * (branch.lowest(num_distinct) + branch.highest(num_distinct)) / 2;
    sum += static_cast<double>(branch.end - branch.mixed_end);
    begin = branch.end;
  }
  return static_cast<uint32_t>(std::lround(sum / 4294967296.0));
}

std::vector<Branch> read_mix(const std::string &text) {
  constexpr uint64_t kAll = uint64_t{1} << 32;
  const std::invalid_argument wrong("mix must be what fdt_pipeline.mix_argument returns, or, of fn.fdt, an FDT, MixUp, "
                                    "CutMix or OneOf, got \"" + printable(text) + "\"");
  if (text == "fdt") return {Branch{}};
  std::vector<Branch> branches;
  std::istringstream lines(text);
  uint64_t begin = 0;
  for (std::string line; std::getline(lines, line, ';');) {
    std::istringstream fields(line);
    fields.imbue(std::locale::classic());  // a decimal point, whatever the process's locale has
    std::string kind;
    Branch branch;
    fields >> kind >> branch.mixed_end >> branch.end >> branch.led >> branch.unique >> branch.label_smoothing >>
        branch.min_images >> branch.max_images >> branch.weights;
    if (fields.fail() || !(fields >> std::ws).eof()) throw wrong;
    if (kind != "sum" && kind != "mixup" && kind != "cutmix") throw wrong;
    branch.kind = kind == "sum" ? Kind::kSum : kind == "mixup" ? Kind::kMixUp : Kind::kCutMix;
    const bool in_order = begin <= branch.mixed_end && branch.mixed_end <= branch.end && branch.end <= kAll;
    const bool in_range = branch.min_images >= 1 && branch.min_images <= kMostClasses &&
                          branch.max_images <= kMostClasses && branch.label_smoothing >= 0 && branch.label_smoothing < 1;
    const bool is_pair = branch.min_images == 2 && branch.max_images == 2;
    if (!in_order || !in_range || (branch.max_images && branch.max_images < branch.min_images)) throw wrong;
    if (branch.kind != Kind::kSum && !is_pair) throw wrong;
    begin = branch.end;
    branches.push_back(std::move(branch));
  }
  if (branches.empty() || branches.size() > kMostBranches || begin != kAll) throw wrong;
  return branches;
}

const Constituent &Plan::heaviest() const {
  return *std::max_element(images.begin(), images.end(),
                           [](const Constituent &a, const Constituent &b) { return a.weight < b.weight; });
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
    throw std::invalid_argument("series must be \"harmonic\", or what native/arguments.py makes of one, got \"" +
                                printable(text) + "\"");
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

MixWeights::MixWeights(const std::vector<Branch> &branches, uint32_t num_distinct) {
  for (const Branch &branch : branches) {
    const bool is_sum = branch.kind == Kind::kSum;
    of_.push_back({is_sum ? WeightSeries(branch.weights, branch.highest(num_distinct)) : WeightSeries("harmonic", 1),
                   is_sum ? std::vector<uint32_t>() : from_hex<uint32_t>(branch.weights)});
    if (is_sum) continue;
    const auto &quantiles = of_.back().quantiles;
    const bool in_range = std::all_of(quantiles.begin(), quantiles.end(), [](uint32_t q) { return q <= 1u << 24; });
    if (quantiles.size() != 1u << kQuantileBits || !in_range)
      throw std::invalid_argument("mix: expected 4,096 quantiles of lambda in units of 2^-24");
  }
}

namespace {

// Up to so many classes are searched in one block: 8 registers of AVX-512.
constexpr uint32_t kOneBlock = 128;

uint32_t lanes(uint32_t n) { return round_up(n, static_cast<uint32_t>(kLanes)); }

}  // namespace

void PlanDrawer::reset(const PlanOptions &options, const ClassIndex &classes, const Shape &shape) {
  options_ = options;
  classes_ = &classes;
  shape_ = shape;
  highest_ = options.highest(classes.num_distinct);
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

// labels_ and ranks_ of a plan.
void PlanDrawer::draw_classes(const Id &id, bool led, bool unique, uint32_t k, const uint32_t *words, uint32_t stride) {
  const Kernels &native = kernels();
  uint32_t unused = static_cast<uint32_t>(classes_->size());
  if (led) labels_[0] = classes_->labels[static_cast<size_t>(id.leader)];
  if (!unique) {
    for (uint32_t i = led; i < k; i++) {
      const uint32_t rank = bounded64(words[i + 1], words[stride + i + 1], unused);
      labels_[i] = classes_->labels[classes_->by_class[rank]];
      ranks_[i] = rank - classes_->starts[labels_[i]];
    }
    return;
  }
  if (led) {
    if (k > 1) native.take_class(sums_, labels_[0], classes_->counts[labels_[0]]);
    unused -= classes_->counts[labels_[0]];
  }
  if (!led || k > 1) {
    native.draw_classes(sums_, classes_->counts.data(), unused, words + 1, stride, led, k, labels_.data(),
                        ranks_.data());
    put_back(k);
  }
}

void PlanDrawer::weigh(const uint32_t (&first)[4], const MixWeights::Of &weights, Plan &plan) const {
  const auto k = static_cast<uint32_t>(plan.images.size());
  const Kind kind = plan.branch->kind;
  plan.box = {};
  if (kind == Kind::kSum || k == 1) {
    for (uint32_t i = 0; i < k; i++) plan.images[i].weight = kind == Kind::kSum ? weights.series(k, i) : 1;
    return;
  }
  const auto h = static_cast<int32_t>(shape_.h), w = static_cast<int32_t>(shape_.w);
  const uint32_t lambda = weights.quantiles[first[0] >> (32 - kQuantileBits)];
  if (kind == Kind::kCutMix) plan.box = draw_box(first, lambda, h, w);
  for (uint32_t i = 0; i < 2; i++)
    plan.images[i].weight = kind == Kind::kCutMix ? area_weight(plan.box, h, w, i == 1)
                                                  : static_cast<float>(i ? (1u << 24) - lambda : lambda) * kLambdaUnit;
}

void PlanDrawer::draw(const Id &id, const MixWeights &weights, Plan &plan) {
  const Kernels &native = kernels();
  const uint32_t index = id.index, shifts = 2 * options_.pad + 1;
  const uint32_t stride = round_up(highest_ + 1, kPhiloxBlocks);
  words_.resize(4 * size_t{stride});
  labels_.resize(highest_);
  ranks_.resize(highest_);
  native.philox_blocks(options_.seed, kStreamPlan, id.epoch, index, 0, kPhiloxBlocks, stride, words_.data());
  const uint32_t *words[4];
  for (size_t i = 0; i < 4; i++) words[i] = words_.data() + i * stride;
  const uint32_t first[4] = {words[0][0], words[1][0], words[2][0], words[3][0]};
  size_t number = 0;
  while (first[2] >= options_.branches[number].end) number++;
  const Branch &branch = options_.branches[number];
  const uint32_t lowest = branch.lowest(classes_->num_distinct), highest = branch.highest(classes_->num_distinct);
  const uint32_t k = first[2] >= branch.mixed_end ? 1 : lowest + bounded64(first[0], first[1], highest - lowest + 1);
  if (k >= kPhiloxBlocks)  // the others came with block 0
    native.philox_blocks(options_.seed, kStreamPlan, id.epoch, index, kPhiloxBlocks, k + 1 - kPhiloxBlocks, stride,
                         words_.data() + kPhiloxBlocks);
  const bool led = id.leader >= 0 && branch.led;
  draw_classes(id, led, branch.unique, k, words[0], stride);
  plan.images.clear();
  plan.branch = &branch;
  for (uint32_t i = 0; i < k; i++) {
    const uint32_t label = labels_[i];
    const bool leads = led && i == 0;
    const uint32_t image =
        leads ? static_cast<uint32_t>(id.leader) : classes_->by_class[classes_->starts[label] + ranks_[i]];
    plan.images.push_back({image, label, static_cast<int32_t>(bounded32(words[2][i + 1], shifts)),
                           static_cast<int32_t>(bounded32(words[3][i + 1], shifts)),
                           options_.flip && (words[3][i + 1] & 1), 0});
  }
  weigh(first, weights[number], plan);
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
