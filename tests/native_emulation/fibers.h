// Fibers: every CUDA thread of an emulated block is one. They run in turns on one host thread, from one barrier to the
// next, so a run is deterministic.
#ifndef TESTS_FIBERS_H_
#define TESTS_FIBERS_H_

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

namespace emulation {

[[noreturn]] inline void fail(const char *why) {
  std::fprintf(stderr, "emulated GPU: %s\n", why);
  std::abort();
}

#if defined(__x86_64__)
// What swapcontext does, without its two system calls: a plan of 500 images takes 10^6 switches.
extern "C" void emulation_switch(void **save, void *load);
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
emulation_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

struct Place {
  void *stack_pointer = nullptr;
  void begin(char *stack, size_t size, void (*entry)()) {
    void **top =
        reinterpret_cast<void **>(stack + size) - 2;  // so that the entry finds the stack aligned as after a call
    *top = reinterpret_cast<void *>(entry);
    stack_pointer = top - 6;
    for (int i = 0; i < 6; i++) static_cast<void **>(stack_pointer)[i] = nullptr;
  }
  void switch_to(Place &other) { emulation_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Place {
  ucontext_t context;
  void begin(char *stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    makecontext(&context, entry, 0);
  }
  void switch_to(Place &other) { swapcontext(&context, &other.context); }
};
#endif

struct Fiber {
  static constexpr size_t kStack = 128 << 10;
  Place place;
  std::unique_ptr<char[]> stack{new char[kStack]};
  unsigned number = 0;
};

// Runs `body(number)` for every number below n; `resumed` is told which one runs. Ready fibers run in the order of
// their numbers, or in the opposite one, and those of a warp as far ahead of the others as barriers let them: one that
// is missing shows in one of the two.
class Fibers {
 public:
  void run(unsigned n, bool backwards, const std::function<void(unsigned)> &body,
           const std::function<void(unsigned)> &resumed) {
    body_ = &body;
    resumed_ = &resumed;
    backwards_ = backwards;
    running_ = this;
    while (fibers_.size() < n) fibers_.emplace_back();
    std::vector<Fiber *> all;
    for (unsigned i = 0; i < n; i++) {
      fibers_[i].number = i;
      ASAN_UNPOISON_MEMORY_REGION(fibers_[i].stack.get(), Fiber::kStack);  // of the fiber that ended on it
      fibers_[i].place.begin(fibers_[i].stack.get(), Fiber::kStack, &Fibers::enter);
      all.push_back(&fibers_[i]);
    }
    make_ready(all);
    unfinished_ = n;
    while (unfinished_) {
      if (ready_.empty()) fail("deadlock: some threads wait at a barrier or shuffle that others never reach");
      current_ = ready_.front();
      ready_.pop_front();
      resume();
      main_.switch_to(current_->place);
    }
  }

  Fiber *current() const { return current_; }
  void make_ready(const std::vector<Fiber *> &fibers) {
    if (backwards_)
      ready_.insert(ready_.begin(), fibers.rbegin(), fibers.rend());
    else
      ready_.insert(ready_.begin(), fibers.begin(), fibers.end());
  }
  // Lets the others run; comes back once somebody has made this fiber ready.
  void pause() {
    Fiber *self = current_;
    if (ready_.empty()) fail("deadlock: some threads wait at a barrier or shuffle that others never reach");
    current_ = ready_.front();
    ready_.pop_front();
    if (current_ == self) return;
    resume();
    self->place.switch_to(current_->place);
  }
  void resume() { (*resumed_)(current_->number); }

 private:
  static void enter() {
    Fibers *fibers = running_;
    (*fibers->body_)(fibers->current_->number);
    fibers->unfinished_--;
    fibers->current_->place.switch_to(fibers->main_);
  }

  static inline Fibers *running_ = nullptr;
  std::deque<Fiber> fibers_;
  std::deque<Fiber *> ready_;
  Fiber *current_ = nullptr;
  Place main_;
  unsigned unfinished_ = 0;
  bool backwards_ = false;
  const std::function<void(unsigned)> *body_ = nullptr, *resumed_ = nullptr;
};

}  // namespace emulation

#endif  // TESTS_FIBERS_H_
