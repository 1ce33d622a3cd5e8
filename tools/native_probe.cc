// What tests and measurements ask of the operators' parts, without DALI, through ctypes (tools/native_probe.py): plans,
// sums and weights on the CPU; batches on a GPU, or on what stands in for one. Compiled together with csrc.
// Functions that can fail return a negative number, or null, and leave a message in fdt_error().
#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "api.h"
#include "gpu.h"
#include "superposer.h"

namespace fdt {

using Yardstick = void(const uint8_t *const *, const float *, int64_t, int64_t, float *);
#if defined(__x86_64__)
namespace v2 {
Yardstick yardstick;
}
namespace v3 {
Yardstick yardstick;
}
namespace v4 {
Yardstick yardstick;
}
#else
namespace generic {
Yardstick yardstick;
}
#endif

}  // namespace fdt

// Mirrored by tools/native_probe.py, as are the other two structures.
struct ProbeOptions {
  uint64_t seed;
  uint32_t pad, flip;
  int32_t channels, half, hwc, targets;
  float mean[4], inv_std[4];
  const char *mix;
};

// Outputs indices[0 .. n - 1] of an epoch; leaders: the pool position of each one's first image, or null. Where there
// are spans (first, count, modulo), a GPU is asked for these in their place, led by the images of `order`, or by any.
struct ProbeIds {
  const int64_t *indices, *leaders;
  int64_t n, epoch;
  const int64_t *spans, *order;
  int64_t num_spans, order_size;
};

// Images of a window on the host, u8[n h w c]; they are put on the GPU in one piece, or scattered.
struct ProbeWindow {
  const uint8_t *pixels;
  const int64_t *labels;
  int64_t n, h, w, c, num_classes, is_scattered;
};

namespace {

using fdt::guarded;
using fdt::pool_of;

fdt::PlanOptions plan_options(const ProbeOptions &o) {
  return {o.seed, fdt::read_mix(o.mix), o.pad, o.flip != 0};
}

fdt::Output output_of(const ProbeOptions &o) {
  fdt::Output output;
  output.channels = o.channels;
  std::copy_n(o.mean, 4, output.mean);
  std::copy_n(o.inv_std, 4, output.inv_std);
  output.half = o.half != 0;
  output.hwc = o.hwc != 0;
  return output;
}

fdt::Targets targets_of(const ProbeOptions &o) { return static_cast<fdt::Targets>(o.targets); }

std::vector<fdt::Id> ids_of(const ProbeIds &given) {
  std::vector<fdt::Id> ids(static_cast<size_t>(given.n));
  for (int64_t i = 0; i < given.n; i++)
    ids[static_cast<size_t>(i)] = {static_cast<uint32_t>(given.epoch), static_cast<uint32_t>(given.indices[i]),
                                   given.leaders ? given.leaders[i] : -1};
  return ids;
}

// Outputs begin .. begin + num - 1 of those; every one has its leader, or none has.
fdt::Asked asked_for(const std::vector<fdt::Id> &ids, int64_t begin, int64_t num) {
  fdt::Asked asked;
  asked.order_version = static_cast<uint64_t>(begin) + 1;
  for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(begin + num); i++) {
    fdt::add_output(ids[i].epoch, ids[i].index, asked.spans);
    if (ids[i].leader >= 0) asked.order.push_back(static_cast<uint32_t>(ids[i].leader));
  }
  if (!asked.order.empty()) asked.leads = fdt::Leads::kByPlace;
  return asked;
}

fdt::Asked asked_for(const ProbeIds &given) {
  fdt::Asked asked;
  for (const int64_t *span = given.spans; span < given.spans + 3 * given.num_spans; span += 3)
    asked.spans.push_back({static_cast<uint32_t>(given.epoch), static_cast<uint32_t>(span[0]),
                           static_cast<uint32_t>(span[1]), static_cast<uint32_t>(span[2])});
  asked.order.assign(given.order, given.order + given.order_size);
  if (given.order_size) asked.leads = fdt::Leads::kByIndex;
  return asked;
}

size_t image_bytes(const ProbeOptions &o, const fdt::Shape &shape) {
  return static_cast<size_t>(shape.h * shape.w * o.channels) * (o.half ? 2 : 4);
}

size_t target_bytes(const ProbeOptions &o, const fdt::ClassIndex &classes) {
  return targets_of(o) == fdt::Targets::kLabel ? 8 : 4 * size_t{classes.num_classes};
}

// A pool whose images may be read here.
const fdt::Pool &host_pool(void *handle) {
  const fdt::Pool &pool = pool_of(handle);
  if (pool.device() != fdt::kHost) throw std::invalid_argument("expected a pool on the host, got one on a GPU");
  return pool;
}

// work(first, last, thread) over [0, n), in as many parts as there are threads -> seconds. What a thread throws, such as
// an error of memory, ends the process.
template <typename Work>
double timed(int64_t n, int num_threads, const Work &work) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int t = 1; t < num_threads; t++)
    threads.emplace_back([&, t] { work(n * t / num_threads, n * (t + 1) / num_threads, static_cast<size_t>(t)); });
  work(int64_t{0}, n / num_threads, size_t{0});
  for (std::thread &thread : threads) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

fdt::Yardstick *yardstick_here() {
#if defined(__x86_64__)
  const std::string isa = fdt::kernels().name;
  return isa == "v2" ? fdt::v2::yardstick : isa == "v3" ? fdt::v3::yardstick : fdt::v4::yardstick;
#else
  return fdt::generic::yardstick;
#endif
}

// The GPU's copies of a window's images, next to each other or each on its own, and where each image is.
struct WindowOnGpu {
  explicit WindowOnGpu(const ProbeWindow &window) {
    const auto size = static_cast<size_t>(window.h * window.w * window.c), n = static_cast<size_t>(window.n);
    if (n && !window.is_scattered) pieces.emplace_back(window.pixels, n * size);
    for (size_t i = 0; i < n; i++) {
      if (window.is_scattered) pieces.emplace_back(window.pixels + i * size, size);
      places.push_back(window.is_scattered ? pieces[i].as<const uint8_t>() : pieces[0].as<const uint8_t>() + i * size);
    }
  }
  std::vector<fdt::GpuMemory> pieces;
  std::vector<const uint8_t *> places;
};

void fetch(void *to, const fdt::GpuMemory &from) {
  fdt::check_cuda(fdt::cuda_driver().cuMemcpyDtoH_v2(to, from.address(), from.size()), "superpose on the GPU");
}

}  // namespace

// The level of the instruction set that is used here.
FDT_EXPORT const char *probe_isa() {
  const char *name = nullptr;
  guarded([&] { return name = fdt::kernels().name, 0; });
  return name;
}

FDT_EXPORT int64_t probe_epoch_order(uint64_t seed, uint32_t epoch, int64_t n, int64_t *order) {
  return guarded([&] {
    const auto made = fdt::epoch_order(seed, epoch, static_cast<size_t>(n));
    std::copy(made.begin(), made.end(), order);
    return 0;
  });
}

// f32[most (most + 1) / 2]: the weights of sums of 1, 2, .. most images, one after the other.
FDT_EXPORT int64_t probe_weights(const char *series, uint32_t most, float *triangle) {
  return guarded([&] {
    const fdt::WeightSeries weights(series, most);
    for (uint32_t k = 1; k <= most; k++)
      for (uint32_t i = 0; i < k; i++) *triangle++ = weights(k, i);
    return 0;
  });
}

// -> the number of constituents, m; they are written where `room` is m or more: offsets i64[n + 1], boxes i64[n 4],
// smoothing f64[n], the others [m].
FDT_EXPORT int64_t probe_draw_plans(void *handle, const ProbeOptions *o, const ProbeIds *given, int64_t room,
                                    int64_t *offsets, int64_t *boxes, double *smoothing, int64_t *images,
                                    int64_t *classes, int64_t *dy, int64_t *dx, uint8_t *flip, float *weights) {
  return guarded([&] {
    const fdt::Pool &pool = pool_of(handle);
    const fdt::PlanOptions options = plan_options(*o);
    const fdt::MixWeights series(options.branches, pool.classes.num_distinct);
    fdt::PlanDrawer drawer;
    drawer.reset(options, pool.classes, pool.shape());
    fdt::Plan plan;
    std::vector<fdt::Constituent> all;
    *offsets = 0;
    for (const fdt::Id &id : ids_of(*given)) {
      drawer.draw(id, series, plan);
      all.insert(all.end(), plan.images.begin(), plan.images.end());
      *++offsets = static_cast<int64_t>(all.size());
      for (int64_t side : {plan.box.top, plan.box.left, plan.box.bottom, plan.box.right}) *boxes++ = side;
      *smoothing++ = plan.branch->label_smoothing;
    }
    const auto m = static_cast<int64_t>(all.size());
    if (m > room) return m;
    for (const fdt::Constituent &c : all) {
      *images++ = c.image;
      *classes++ = c.label;
      *dy++ = c.dy;
      *dx++ = c.dx;
      *flip++ = c.flip;
      *weights++ = c.weight;
    }
    return m;
  });
}

// Outputs on the CPU, `repeats` times over: images f32 or f16 [n ...], targets f32[n num_classes] or i64[n], and the
// seconds that it took.
FDT_EXPORT int64_t probe_superpose(void *handle, const ProbeOptions *o, const ProbeIds *given, int num_threads,
                                   int repeats, void *images, void *targets, double *seconds) {
  return guarded([&] {
    const fdt::Pool &pool = host_pool(handle);
    const fdt::PlanOptions options = plan_options(*o);
    if (o->pad > pool.pad()) throw std::invalid_argument("the pool was made for less padding");
    const fdt::Output output = output_of(*o);
    const fdt::MixWeights series(options.branches, pool.classes.num_distinct);
    const auto ids = ids_of(*given);
    std::vector<void *> image_at, target_at;
    for (size_t i = 0; i < ids.size(); i++) {
      image_at.push_back(static_cast<char *>(images) + i * image_bytes(*o, pool.shape()));
      target_at.push_back(static_cast<char *>(targets) + i * target_bytes(*o, pool.classes));
    }
    std::vector<fdt::Superposer> superposers(static_cast<size_t>(num_threads));
    for (auto &superposer : superposers) superposer.reset(pool, options);
    *seconds = timed(given->n, num_threads, [&](int64_t first, int64_t last, size_t thread) {
      for (int i = 0; i < repeats; i++)
        superposers[thread].run(pool, series, output, targets_of(*o), ids.data(), first, last,
                                image_at.data(), target_at.data());
    });
    return 0;
  });
}

// Seconds for n sums of the pool's images, counts[i] images in sum i, one after the other in `images`: multiply-adds of
// u8 into float32 without plans and shifts, and nothing written but the sums.
FDT_EXPORT int64_t probe_yardstick(void *handle, const int64_t *counts, const int64_t *images, int64_t n,
                                   int num_threads, int repeats, double *seconds) {
  return guarded([&] {
    const fdt::Pool &pool = host_pool(handle);
    const int64_t size = pool.shape().size();
    std::vector<size_t> begins{0};
    for (int64_t i = 0; i < n; i++) begins.push_back(begins.back() + static_cast<size_t>(counts[i]));
    std::vector<const uint8_t *> at;
    for (size_t i = 0; i < begins.back(); i++) at.push_back(pool.image(static_cast<size_t>(images[i])));
    const std::vector<float> weights(at.size(), 0.25f);
    std::vector<fdt::HugeMemory> sums(static_cast<size_t>(num_threads));
    for (auto &memory : sums) memory = fdt::HugeMemory(static_cast<size_t>(size + fdt::kLanes) * sizeof(float));
    fdt::Yardstick *const plain_sums = yardstick_here();
    *seconds = timed(n, num_threads, [&](int64_t first, int64_t last, size_t thread) {
      float *to = reinterpret_cast<float *>(sums[thread].data());
      for (int repeat = 0; repeat < repeats; repeat++)
        for (int64_t i = first; i < last; i++) {
          const size_t b = begins[static_cast<size_t>(i)];
          plain_sums(&at[b], &weights[b], counts[i], size, to);
        }
    });
    return 0;
  });
}

// A file to load instead of the system's libcuda.so.1; to be called before the GPU is first used.
FDT_EXPORT int64_t probe_set_cuda_path(const char *path) {
  return guarded([&] { return fdt::set_cuda_path(path), 0; });
}

// Compiles the kernels of 1 to 4 channels for `arch` ("sm_90", "compute_90"), which needs no GPU -> bytes.
FDT_EXPORT int64_t probe_compile_kernels(const char *arch) {
  return guarded([&] {
    int64_t num_bytes = 0;
    for (int c = 1; c <= fdt::kMostChannels; c++)
      num_bytes += static_cast<int64_t>(fdt::compile_kernels(arch, c, c).size());
    return num_bytes + static_cast<int64_t>(fdt::compile_kernels(arch, 1, 3).size());
  });
}

// Outputs on GPU 0 by one operator, batch_size at a time, `repeats` times over: from a pool there, or from a window
// where `handle` is null. images, targets: on the host, as above. seconds: of the repeats after the first.
FDT_EXPORT int64_t probe_gpu_superpose(void *handle, const ProbeWindow *window, const ProbeOptions *o,
                                       const ProbeIds *given, int64_t batch_size, int repeats, void *images,
                                       void *targets, double *seconds) {
  return guarded([&] {
    fdt::ClassIndex classes;
    if (handle)
      classes = pool_of(handle).classes;
    else
      classes.assign(window->labels, static_cast<size_t>(window->n), static_cast<uint32_t>(window->num_classes));
    const fdt::Shape shape = handle ? pool_of(handle).shape() : fdt::Shape{window->h, window->w, window->c};
    const std::vector<fdt::Id> ids = ids_of(*given);
    const fdt::CurrentContext current(fdt::primary_context(0));
    const fdt::PlanOptions plan = plan_options(*o);
    fdt::GpuSuperpose superpose(plan, fdt::MixWeights(plan.branches, classes.num_distinct), output_of(*o),
                                targets_of(*o));
    const WindowOnGpu on_gpu(handle ? ProbeWindow{} : *window);
    for (int64_t at = 0; at < given->n; at += batch_size) {
      const int64_t num = std::min(batch_size, given->n - at);
      const fdt::Asked asked = given->num_spans ? asked_for(*given) : asked_for(ids, at, num);
      const fdt::GpuMemory to(image_bytes(*o, shape) * static_cast<size_t>(num)),
          targets_to(target_bytes(*o, classes) * static_cast<size_t>(num));
      const auto run = [&] {
        if (handle)
          superpose.run(pool_of(handle).on_gpu(), asked, to.as<void>(), targets_to.as<void>(), nullptr);
        else
          superpose.run_window(on_gpu.places.data(), shape, classes, asked, to.as<void>(), targets_to.as<void>(), nullptr);
      };
      run();
      if (repeats > 1) {
        fdt::check_cuda(fdt::cuda_driver().cuStreamSynchronize(nullptr), "superpose on the GPU");
        *seconds += timed(repeats - 1, 1, [&](int64_t begin, int64_t end, size_t) {
          for (int64_t i = begin; i < end; i++) run();
          fdt::check_cuda(fdt::cuda_driver().cuStreamSynchronize(nullptr), "superpose on the GPU");
        });
      }
      fetch(static_cast<char *>(images) + static_cast<size_t>(at) * image_bytes(*o, shape), to);
      fetch(static_cast<char *>(targets) + static_cast<size_t>(at) * target_bytes(*o, classes), targets_to);
    }
    return 0;
  });
}
