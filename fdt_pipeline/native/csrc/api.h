// What C functions for ctypes share: how they are exported, report errors, and refer to pools.
#ifndef FDT_API_H_
#define FDT_API_H_

#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "pool.h"

#define FDT_EXPORT extern "C" __attribute__((visibility("default")))

namespace fdt {

// The last error of this thread's C functions; fdt_error() returns it.
std::string &last_error();

// What `work` returns, or -1 where it throws, with the reason in last_error(). An exception that leaves a C function
// would end the process, so all work that may throw goes through this.
template <typename Work>
int64_t guarded(Work work) noexcept {
  try {
    try {
      return work();
    } catch (const std::bad_alloc &) {
      last_error() = "out of memory";
    } catch (const std::exception &error) {
      last_error() = error.what();
    } catch (...) {
      last_error() = "unknown error";
    }
  } catch (...) {  // no memory for the reason
    last_error().clear();
  }
  return -1;
}

// What a pool's handle points to.
using PoolHandle = std::shared_ptr<Pool>;

inline Pool &pool_of(void *handle) { return **static_cast<PoolHandle *>(handle); }

}  // namespace fdt

#endif  // FDT_API_H_
