// Which of the kernels this machine can run; and the memory that they work in.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernel.h"

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

const Kernels &choose() {
#if defined(__x86_64__)
  const bool has_v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool has_v4 = has_v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  const char *asked = std::getenv("FDT_PIPELINE_ISA");
  const std::string level = asked && *asked ? asked : has_v4 ? "v4" : has_v3 ? "v3" : "v2";
  if (level == "v2") return v2::table;
  if (level == "v3" && has_v3) return v3::table;
  if (level == "v4" && has_v4) return v4::table;
  throw std::invalid_argument("FDT_PIPELINE_ISA must be v2, v3 or v4, and this machine must have it, got " + level);
#else
  return generic::table;
#endif
}

// Sums of so many floats stay in the first-level cache beside the rows that are added to them.
constexpr int64_t kTileFloats = 4096;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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
  sums_.resize(static_cast<size_t>(2 * shape.c * tile_rows * row_floats + kLanes));
  rows_.resize(static_cast<size_t>(kMostChannels * row_floats + kLanes));
  unshifted_ = valid_.data() + margin;
  sums_at_ = aligned(sums_);
  rows_at_ = aligned(rows_);
}

}  // namespace fdt
