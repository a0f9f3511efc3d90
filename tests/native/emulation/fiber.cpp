#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
// Keeps what a call must keep on the old stack, goes to the new one and swaps their tops.
extern "C" __attribute__((visibility("hidden"))) void kd_switch_stack(void** top);
asm(R"(
.text
.hidden kd_switch_stack
.globl kd_switch_stack
.type kd_switch_stack, @function
kd_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  xchgq %rsp, (%rdi)
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kd_switch_stack, .-kd_switch_stack
)");
#endif

namespace kd::emulation {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

Fiber* current = nullptr;
std::vector<char*> spare_stacks;

// With a page below it that traps.
char* take_stack() {
  if (!spare_stacks.empty()) {
    char* stack = spare_stacks.back();
    spare_stacks.pop_back();
    return stack;
  }
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* pages = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED || mprotect(pages, page, PROT_NONE) != 0) std::abort();
  return static_cast<char*>(pages) + page;
}

#ifdef __SANITIZE_ADDRESS__
const void* outer_stack;
size_t outer_bytes;
void begin_switch(void** kept, const void* stack, size_t bytes) { __sanitizer_start_switch_fiber(kept, stack, bytes); }
void end_switch(void* kept, bool inside) {
  __sanitizer_finish_switch_fiber(kept, inside ? &outer_stack : nullptr, inside ? &outer_bytes : nullptr);
}
#else
const void* const outer_stack = nullptr;
constexpr size_t outer_bytes = 0;
void begin_switch(void**, const void*, size_t) {}
void end_switch(void*, bool) {}
#endif

}  // namespace

Fiber::~Fiber() {
  if (stack_) spare_stacks.push_back(stack_);
}

void Fiber::enter() {
  end_switch(nullptr, true);
  current->body_();
  std::abort();  // it has to leave
}

void Fiber::start(void (*body)()) {
  if (!stack_) stack_ = take_stack();
  body_ = body;
#ifdef __x86_64__
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
  *--top = nullptr;  // where enter() would return to: with it the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(&Fiber::enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  top_ = top;
#else
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_;
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, &Fiber::enter, 0);
#endif
}

void Fiber::resume() {
  current = this;
  void* kept = nullptr;
  begin_switch(&kept, stack_, kStackBytes);
#ifdef __x86_64__
  kd_switch_stack(&top_);
#else
  swapcontext(&outside_, &inside_);
#endif
  end_switch(kept, false);
}

void Fiber::leave(bool for_good) {
  void* kept = nullptr;
  begin_switch(for_good ? nullptr : &kept, outer_stack, outer_bytes);
#ifdef __x86_64__
  kd_switch_stack(&top_);
#else
  swapcontext(&inside_, &outside_);
#endif
  end_switch(kept, true);
}

}  // namespace kd::emulation
