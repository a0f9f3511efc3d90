// A stack of its own for every emulated thread.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace kd::emulation {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  void start(void (*body)());  // what the next resume() runs; it ends with leave(true)
  void resume();               // from outside, until the fiber leaves
  void leave(bool for_good);   // from inside, to where it was resumed

 private:
  static void enter();

  char* stack_ = nullptr;
  void (*body_)() = nullptr;
#ifdef __x86_64__
  void* top_ = nullptr;  // of its stack while it is not running, and of the other stack while it is
#else
  ucontext_t inside_, outside_;
#endif
};

}  // namespace kd::emulation
