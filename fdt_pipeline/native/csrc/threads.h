// Work shared out among threads of our own, where DALI's are not at hand.
#ifndef FDT_THREADS_H_
#define FDT_THREADS_H_

#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace fdt {

// work(t) for t = 0 .. num_threads - 1, each on a thread of its own, 0 on this one; those that the system has no thread
// for follow here. Throws what the first of them threw, once all have ended: out of a thread it would end the process.
template <typename Work>
void run_threads(int num_threads, const Work &work) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(num_threads));
  const auto run = [&](int t) {
    try {
      work(t);
    } catch (...) {
      errors[static_cast<size_t>(t)] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(num_threads));
  int begun = 1;
  try {
    for (; begun < num_threads; begun++) threads.emplace_back(run, begun);
  } catch (const std::system_error &) {
  }
  run(0);
  for (; begun < num_threads; begun++) run(begun);
  for (std::thread &thread : threads) thread.join();
  for (const std::exception_ptr &error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace fdt

#endif  // FDT_THREADS_H_
