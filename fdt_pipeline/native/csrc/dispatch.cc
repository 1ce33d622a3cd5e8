// Which of the kernels this machine can run; and the memory that they work in.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel.h"
#include "plan.h"

namespace fdt {

#if defined(__x86_64__)
namespace v2 {
extern const Kernels table;
}
namespace v3 {
extern const Kernels table;
}
namespace v4 {
extern const Kernels table;
}
#else
namespace generic {
extern const Kernels table;
}
#endif

namespace {

// What this processor can run, the best last (LEVELS of native/recipe.py).
std::vector<const Kernels *> found() {
#if defined(__x86_64__)
  std::vector<const Kernels *> all{&v2::table};
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return all;
  all.push_back(&v3::table);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
    all.push_back(&v4::table);
  return all;
#else
  return {&generic::table};
#endif
}

const Kernels &choose() {
  const std::vector<const Kernels *> all = found();
  const char *asked = std::getenv("FDT_PIPELINE_ISA");
  if (!asked || !*asked) return *all.back();
  std::string names;
  for (const Kernels *one : all) {
    if (one->name == std::string(asked)) return *one;
    names += (names.empty() ? "" : ", ") + std::string(one->name);
  }
  throw std::invalid_argument("FDT_PIPELINE_ISA must be one of " + names + " (what this processor has), got \"" +
                              printable(asked) + "\": unset it for the best");
}

// Sums of so many floats stay in the first-level cache beside the rows that are added to them.
constexpr int64_t kTileFloats = 4096;

// The first address in it that is a multiple of 64.
float *aligned(std::vector<float> &memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float *>((address + 63) & ~uintptr_t{63});
}

}  // namespace

const Kernels &kernels() {
  static const Kernels &chosen = choose();
  return chosen;
}

Workspace::Workspace(const Shape &given, int64_t padding)
    : shape(given),
      pad(padding),
      row_floats(round_up(given.w, kLanes)),
      tile_rows(std::min(given.h, std::max<int64_t>(1, kTileFloats / (row_floats * given.c)))) {
  // Zeros, a row of ones, zeros: a shifted view of it says which bytes of a shifted row are in the image.
  const int64_t margin = pad + 2 * kLanes;
  valid_.assign(static_cast<size_t>(2 * margin + row_floats), 0);
  std::fill_n(valid_.begin() + margin, shape.w, uint8_t{0xFF});
  boxed_.resize(static_cast<size_t>(row_floats));
  sums_.resize(static_cast<size_t>(2 * shape.c * tile_rows * row_floats + kLanes));
  rows_.resize(static_cast<size_t>(kMostChannels * row_floats + kLanes));
  unshifted_ = valid_.data() + margin;
  sums_at_ = aligned(sums_);
  rows_at_ = aligned(rows_);
}

}  // namespace fdt
