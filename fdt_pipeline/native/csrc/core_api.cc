// What Python calls through ctypes: pools, and plans and sums without DALI, for tests and benchmarks.
// Functions that can fail return 0 or a negative number and leave a message in fdt_error().
#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "api.h"
#include "kernel.h"
#include "plan.h"
#include "pool.h"
#include "superposer.h"
#include "threads.h"

namespace {

// A pool whose images may be read here.
const fdt::Pool &host_pool(void *handle) {
  const fdt::Pool &pool = pool_of(handle);
  if (pool.device() != fdt::kHost) throw std::invalid_argument("expected a pool on the host, got one on a GPU");
  return pool;
}

// work(first, last, thread) over [0, n), cut into as many parts as there are threads.
template <typename Work>
void share_out(int64_t n, int num_threads, const Work &work) {
  fdt::run_threads(num_threads, [&](int t) { work(n * t / num_threads, n * (t + 1) / num_threads, t); });
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

FDT_EXPORT const char *fdt_error() { return last_error.c_str(); }

FDT_EXPORT const char *fdt_isa() {
  const char *name = nullptr;
  return guarded([&] { return name = fdt::kernels().name, 0; }) == 0 ? name : nullptr;
}

// device: the number of a GPU, or -1 for the host.
FDT_EXPORT void *fdt_pool_create(int64_t n, int64_t h, int64_t w, int64_t c, int64_t pad, int device) {
  void *handle = nullptr;
  guarded([&] {
    if (n < 1) throw std::invalid_argument("the pool is empty: expected one image or more");
    if (h < 1 || w < 1 || c < 1 || c > fdt::kMostChannels)
      throw std::invalid_argument("images must be [h w c] with 1 to 4 channels");
    handle = new PoolHandle(std::make_shared<fdt::Pool>(static_cast<size_t>(n), fdt::Shape{h, w, c}, pad, device));
    return 0;
  });
  return handle;
}

// u8[n h w c] in and out, images first .. first + n - 1. They are set before the pool is finished.
FDT_EXPORT int64_t fdt_pool_set(void *handle, int64_t first, int64_t n, const uint8_t *pixels) {
  return guarded([&] {
    pool_of(handle).set_images(static_cast<size_t>(first), static_cast<size_t>(n), pixels);
    return 0;
  });
}

FDT_EXPORT int64_t fdt_pool_get(void *handle, int64_t first, int64_t n, uint8_t *pixels) {
  return guarded([&] {
    pool_of(handle).get_images(static_cast<size_t>(first), static_cast<size_t>(n), pixels);
    return 0;
  });
}

FDT_EXPORT int64_t fdt_pool_finish(void *handle, const int64_t *labels, uint32_t num_classes, const char *name) {
  return guarded([&] {
    pool_of(handle).set_labels(labels, num_classes);
    if (name) fdt::register_pool(name, *static_cast<PoolHandle *>(handle));
    return 0;
  });
}

// Lets go of it; operators that use it keep it. name: as it was registered, or null.
FDT_EXPORT int64_t fdt_pool_release(void *handle, const char *name) {
  return guarded([&] {
    const std::unique_ptr<PoolHandle> ended(static_cast<PoolHandle *>(handle));
    if (name) fdt::unregister_pool(name);
    return 0;
  });
}

// A folder of raw shards, read as the operator reads it. device: as above.
FDT_EXPORT void *fdt_pool_read(const char *folder, int64_t pad, int num_threads, int device) {
  void *handle = nullptr;
  guarded([&] {
    handle = new PoolHandle(std::const_pointer_cast<fdt::Pool>(fdt::read_shards(folder, pad, num_threads, device)));
    return 0;
  });
  return handle;
}

FDT_EXPORT void fdt_pool_shape(void *handle, int64_t *n_h_w_c_classes) {
  const fdt::Pool &pool = pool_of(handle);
  const int64_t values[] = {static_cast<int64_t>(pool.size()), pool.shape().h, pool.shape().w, pool.shape().c,
                            pool.classes.num_classes};
  std::copy_n(values, 5, n_h_w_c_classes);
}

FDT_EXPORT void fdt_pool_labels(void *handle, int64_t *labels) {
  const auto &from = pool_of(handle).classes.labels;
  std::copy(from.begin(), from.end(), labels);
}

FDT_EXPORT int64_t fdt_epoch_order(uint64_t seed, uint32_t epoch, int64_t n, int64_t *order) {
  return guarded([&] {
    const auto made = fdt::epoch_order(seed, epoch, static_cast<size_t>(n));
    std::copy(made.begin(), made.end(), order);
    return 0;
  });
}

FDT_EXPORT int64_t fdt_series(const char *series, uint32_t most, float *triangle) {
  return guarded([&] {
    const fdt::WeightSeries weights(series, most);
    for (uint32_t k = 1; k <= most; k++)
      for (uint32_t i = 0; i < k; i++) *triangle++ = weights(k, i);
    return 0;
  });
}

// -> the number of constituents, m; they are written where `room` is m or more: offsets i64[n + 1], the others [m].
FDT_EXPORT int64_t fdt_draw_plans(void *handle, const FdtOptions *o, uint32_t epoch, const int64_t *indices,
                                  const int64_t *leaders, int64_t n, int64_t room, int64_t *offsets, int64_t *images,
                                  int64_t *classes, int64_t *dy, int64_t *dx, uint8_t *flip) {
  return guarded([&] {
    fdt::PlanDrawer drawer;
    drawer.reset(plan_options(*o), pool_of(handle).classes);
    std::vector<fdt::Constituent> plan;
    offsets[0] = 0;
    const auto ids = ids_of(epoch, indices, leaders, n);
    for (int64_t i = 0; i < n; i++) offsets[i + 1] = offsets[i] + drawer.draw(ids[static_cast<size_t>(i)], plan);
    const auto m = static_cast<int64_t>(plan.size());
    if (m > room) return m;
    for (const fdt::Constituent &c : plan) {
      *images++ = c.image;
      *classes++ = c.label;
      *dy++ = c.dy;
      *dx++ = c.dx;
      *flip++ = c.flip;
    }
    return m;
  });
}

// Outputs of a batch: images f32 or f16 [n ...], targets f32[n num_classes] or i64[n]; `repeats` times over.
// seconds: how long that took, threads included (null if of no interest).
FDT_EXPORT int64_t fdt_superpose(void *handle, const FdtOptions *o, uint32_t epoch, const int64_t *indices,
                                 const int64_t *leaders, int64_t n, int num_threads, int repeats, void *images,
                                 void *targets, double *seconds) {
  return guarded([&] {
    const fdt::Pool &pool = host_pool(handle);
    const fdt::PlanOptions options = plan_options(*o);
    if (o->pad > pool.pad()) throw std::invalid_argument("the pool was made for less padding");
    const fdt::Output output = output_of(*o);
    const auto kind = static_cast<fdt::Targets>(o->targets);
    const fdt::WeightSeries series(o->series, options.highest(pool.classes));
    const auto ids = ids_of(epoch, indices, leaders, n);
    const auto image_bytes =
        static_cast<size_t>(pool.shape().h * pool.shape().w * output.channels) * (output.half ? 2 : 4);
    const size_t target_bytes = kind == fdt::Targets::kLabel ? 8 : 4 * size_t{pool.classes.num_classes};
    std::vector<void *> image_at, target_at;
    for (size_t i = 0; i < static_cast<size_t>(n); i++) {
      image_at.push_back(static_cast<char *>(images) + i * image_bytes);
      target_at.push_back(static_cast<char *>(targets) + i * target_bytes);
    }
    const fdt::Batch batch{image_at.data(), target_at.data()};
    std::vector<fdt::Superposer> superposers(static_cast<size_t>(num_threads));
    for (auto &superposer : superposers) superposer.reset(pool, options);
    const double begin = seconds_now();
    share_out(n, num_threads, [&](int64_t first, int64_t last, int thread) {
      for (int i = 0; i < repeats; i++)
        superposers[static_cast<size_t>(thread)].run(pool, series, output, kind, ids.data(), first, last, batch);
    });
    if (seconds) *seconds = seconds_now() - begin;
    return 0;
  });
}

// The yardstick of the above: seconds for as many sums of the pool's images, plain multiply-adds of u8 into float32,
// each of counts[i] images, no plans, no shifts, nothing written but the sums. -1 if out of memory.
FDT_EXPORT double fdt_yardstick(void *handle, const int64_t *counts, const int64_t *images, int64_t n, int num_threads,
                                int repeats) {
  double seconds = -1;
  guarded([&] {
    const fdt::Pool &pool = host_pool(handle);
    const int64_t size = pool.shape().size();
    std::vector<int64_t> begins{0};
    for (int64_t i = 0; i < n; i++) begins.push_back(begins.back() + counts[i]);
    std::vector<const uint8_t *> at;
    for (int64_t i = 0; i < begins.back(); i++) at.push_back(pool.image(static_cast<size_t>(images[i])));
    const std::vector<float> weights(at.size(), 0.25f);
    std::vector<fdt::HugeMemory> sums(static_cast<size_t>(num_threads));
    for (auto &memory : sums) memory = fdt::HugeMemory(static_cast<size_t>(size + fdt::kLanes) * sizeof(float));
    const auto plain_sums = fdt::kernels().yardstick;
    const double begin = seconds_now();
    share_out(n, num_threads, [&](int64_t first, int64_t last, int thread) {
      float *to = reinterpret_cast<float *>(sums[static_cast<size_t>(thread)].data());
      for (int repeat = 0; repeat < repeats; repeat++)
        for (int64_t i = first; i < last; i++) {
          const int64_t b = begins[static_cast<size_t>(i)];
          plain_sums(&at[static_cast<size_t>(b)], &weights[static_cast<size_t>(b)], counts[i], size, to);
        }
    });
    seconds = seconds_now() - begin;
    return 0;
  });
  return seconds;
}
