// Memory for large gradients, kept from one step to the next.
#pragma once

#include <cstddef>

namespace kd {

struct Pages {
  void* data;
  size_t bytes;
};

// A gradient's memory is as large as the logits'. Fresh from the system it costs a page fault and a clearing pass, half
// as much time as the loss itself, at every step. The last block given back is therefore kept, one block and no more: a
// training step needs it again when it is at its peak. A request that the kept block does not fit, or would fill by
// less than half, gives that block to the system before a new one is taken.
//
// Thread-safe. take_pages throws std::bad_alloc; its memory is on 2 MiB pages where the system has them, and holds
// anything.
Pages take_pages(size_t bytes);
void give_pages(Pages pages);
void release_pages();  // the kept block to the system

}  // namespace kd
