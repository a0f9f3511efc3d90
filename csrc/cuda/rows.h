// Divergences row by row on a GPU.
#pragma once

#include "kd/rows.h"
#include "row_plan.h"

namespace kd {

// Whether a family keeps h of an entry from one sweep to the next where it can.
bool keeps_terms(Family family);

// Pointers of the call are the device's; Real is float, both sides have one dtype. Gradients are divided by
// *normalizer, which may be null; they may be written over the student's logits, row by row in place.
// Enqueues one kernel on the stream. `plan` is plan_rows' for the columns and the dtype.
void run_rows(const RowsCall& call, const float* normalizer, const RowPlan& plan, void* stream);

}  // namespace kd
