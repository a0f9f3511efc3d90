// How a row pair is laid over the machine: a function of its size alone, never of the other rows, so that a row has the
// same bits in any batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kd/dtype.h"

namespace kd {

constexpr int kMaxRowThreads = 256;
constexpr int kMaxCluster = 8;  // the largest that every GPU with clusters runs
constexpr int kRing = 4;        // vectors of a side that a thread has under way or in hand where rows are streamed
// Two blocks and more share a multiprocessor: while one of them waits for its row or for its team, another computes.
// That is why a block has one row at a time and not the next one besides: the memory for it is better spent on a block.
constexpr int kRowBlocks = 2;

struct RowPlan {
  int blocks;     // that share a row in their shared memory; 0: one block, and the row is streamed
  int threads;    // of a block
  int64_t slice;  // vectors of a side that a block holds
  bool keeps;     // h has a place beside the logits
  size_t shared_bytes;
};

// Of a device, by its compute capability: 10 major + minor.
struct SharedMemory {
  size_t of_block, of_multiprocessor;
};
SharedMemory shared_memory_of(int capability);

// `keeps`: the family has a use for h of every entry. `blocks`: what to take instead of the best, -1 for that.
// Throws std::invalid_argument where the row does not fit so.
RowPlan plan_rows(int64_t columns, DType dtype, bool keeps, int capability, int blocks = -1);

}  // namespace kd
