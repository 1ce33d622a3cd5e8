// What the C functions for ctypes share: options, errors, ids.
#ifndef FDT_API_H_
#define FDT_API_H_

#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "kernel.h"
#include "plan.h"
#include "pool.h"

#define FDT_EXPORT extern "C" __attribute__((visibility("default")))

// Mirrored by ctypes in fdt_pipeline/native/core.py.
struct FdtOptions {
  uint64_t seed, mix_threshold;
  uint32_t min_images, max_images, pad, flip;
  int32_t channels, half, hwc, targets;
  float mean[4], inv_std[4];
  const char *series;
};

namespace {

thread_local std::string last_error;  // of this file's functions

// What `work` returns, or -1 where it throws, with the reason in last_error. Whatever may throw goes through this: an
// exception that leaves a C function ends the process.
template <typename Work>
int64_t guarded(Work work) noexcept {
  try {
    try {
      return work();
    } catch (const std::bad_alloc &) {
      last_error = "out of memory";
    } catch (const std::exception &error) {
      last_error = error.what();
    } catch (...) {
      last_error = "unknown error";
    }
  } catch (...) {  // no memory for the reason
    last_error.clear();
  }
  return -1;
}

using PoolHandle = std::shared_ptr<fdt::Pool>;

fdt::Pool &pool_of(void *handle) { return **static_cast<PoolHandle *>(handle); }

fdt::PlanOptions plan_options(const FdtOptions &o) {
  return {o.seed, o.min_images, o.max_images, o.mix_threshold, o.pad, o.flip != 0};
}

fdt::Output output_of(const FdtOptions &o) {
  fdt::Output output;
  output.channels = o.channels;
  std::copy_n(o.mean, 4, output.mean);
  std::copy_n(o.inv_std, 4, output.inv_std);
  output.half = o.half != 0;
  output.hwc = o.hwc != 0;
  return output;
}

std::vector<fdt::Id> ids_of(uint32_t epoch, const int64_t *indices, const int64_t *leaders, int64_t n) {
  std::vector<fdt::Id> ids(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) ids[static_cast<size_t>(i)] = {epoch, indices[i], leaders ? leaders[i] : -1};
  return ids;
}

}  // namespace

#endif  // FDT_API_H_
