// Optimal transport on at most `threads` threads. The bits of every result are independent of how many, and those of a
// problem or a row of all others. Throws std::bad_alloc.
#pragma once

#include "l1_cost.h"
#include "sinkhorn.h"
#include "sorted_l1.h"

namespace kd {

void run_sinkhorn(const SinkhornCall& call, int threads);
void run_sinkhorn_backward(const SinkhornBackwardCall& call, int threads);
void run_l1_cost(const L1Call& call, int threads);           // statistics and costs
void run_l1_cost_backward(const L1Call& call, int threads);  // the gradient, from the statistics
void run_sorted_l1(const SortedCall& call, int threads);

}  // namespace kd
