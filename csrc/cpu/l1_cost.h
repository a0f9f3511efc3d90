// L1 distances between the rows of two matrices, distributions of logits or vectors as they are.
//
// A tile is up to kL1Rows student rows that count against all teacher rows that count. Its costs are sums over blocks
// of kL1Block columns, its gradient is made block by block: probabilities of a block exist for as long as it is worked
// on.
#pragma once

#include "sinkhorn.h"

namespace kd {

constexpr int64_t kL1Rows = 64;     // of either side in a block
constexpr int64_t kL1Block = 1024;  // columns
// From one row of a block to the next: a power of two would put a column of the block into one set of the cache.
constexpr int64_t kL1Pitch = kL1Block + 16;
constexpr int64_t kL1Splits = 32;  // sums over runs of blocks that are added up at the end, whatever the threads

struct L1Call {
  int64_t problems, rows, others, columns;  // student's rows, teacher's rows, columns that count
  int64_t width;                            // of a gradient row; it is zero from `columns` on
  Batch student, teacher;
  const uint8_t* student_mask;  // [problems][rows] or null
  const uint8_t* teacher_mask;  // [problems][others] or null
  double inverse_temperature_student, inverse_temperature_teacher;
  bool softmax;
  void* statistics;      // Real[problems][rows + others][2]: maximum, and 1 / sum exp((z - maximum) / T)
  void* cost;            // Real[problems][rows][others]
  const void* upstream;  // Real[problems][rows][others]
  void* gradient;        // [problems][rows][width] of the student's dtype
};  // Real is double for float64 logits, else float

struct L1Tile {
  int64_t problem;
  const int64_t* rows;  // of the student, that count
  int64_t count;        // at most kL1Rows
  const int64_t* others;
  int64_t other_count;
};

struct L1Functions {
  // One row's statistics; rows of all problems, the student's before the teacher's.
  void (*statistics)(const L1Call& call, int64_t row);
  // costs[count][other_count] of the blocks [begin, end). Scratch as below.
  void (*cost)(const L1Call& call, const L1Tile& tile, int64_t begin, int64_t end, void* costs, void* scratch);
  // derivative[count][columns] = G of block `block`, where the gradient will be if `derivative` is null, and
  // sums[i] = sum q G. Without softmax G goes into the gradient and nothing else is written. upstream holds that of the
  // tile, transposed to [other_count][kL1Rows], and then minus the sum of each row.
  void (*derivative)(const L1Call& call, const L1Tile& tile, int64_t block, const void* upstream, void* derivative,
                     void* sums, void* scratch);
  // The gradient of row i of the tile: q (G - sum) / T, and zeros from `columns` on.
  void (*finish)(const L1Call& call, const L1Tile& tile, int64_t i, const void* derivative, double sum);
};

inline size_t l1_scratch(bool is_double) {
  return (is_double ? sizeof(double) : sizeof(float)) * size_t(3 * kL1Rows * kL1Pitch);
}

L1Functions l1_functions_scalar(DType student, DType teacher);
L1Functions l1_functions_avx2(DType student, DType teacher);
L1Functions l1_functions_avx512(DType student, DType teacher);

}  // namespace kd
