// L1 distances between the rows of two matrices, distributions of logits or vectors as they are, and the gradient.
//
// C_ij = sum_v |q_iv - p_jv|. A block owns a tile of C and a range of columns; it makes the probabilities of a few
// columns at a time, and keeps its tile's sums in registers. Ranges depend on the problem alone, and are added up in
// order: the same bits whatever the batch and the device.
#pragma once

#include <cstdint>

#include "kd/dtype.h"

namespace kd {

struct L1Side {
  const void* entries;
  int64_t problem_stride, row_stride;  // in entries
  const uint8_t* mask;                 // [problems][rows] or null
  int rows;                            // of a problem
  float rate;                          // 1 / (T ln 2): exponentials are powers of 2
};

struct L1Problems {
  int64_t problems;
  L1Side student, teacher;
  int columns;  // that count, from the first
  DType dtype;  // of both sides
  bool softmax;
  float* statistics;  // [problems][student.rows + teacher.rows][2]: maximum, and 1 / sum exp((z - maximum) / T)
};

// How the costs of a problem are cut: square tiles, ranges of `width` columns. Where tiles are few, as many ranges as
// there are columns for, and give work to so many threads.
struct L1Cut {
  int tile;
  int ranges;
  int width;
  int64_t sums;  // of all tiles and ranges of one problem
};
L1Cut l1_cut(int rows, int others, int columns, int64_t threads);

// Statistics of all rows; 0 for those that do not count.
void l1_statistics(const L1Problems& of, void* stream);

// cost[problems][rows][others]; 0 for rows that do not count. sums[problems * cut.sums] is scratch.
void l1_cost(const L1Problems& of, const L1Cut& cut, float* sums, float* cost, void* stream);

// The gradient is made from G_iv = dL / dq_iv. With softmax it is q (G - sum q G) / T, and some tiles of kL1GainRows
// rows are worked on at a time, with scratch for their G.
constexpr int kL1GainRows = 32;
constexpr int kL1GainColumns = 256;

struct L1Backward {
  const float* upstream;  // [problems][rows][others]
  int64_t upstream_strides[3];
  float inverse_temperature;
  void* gradient;             // [problems][rows][width] of the dtype; 0 from `columns` on and in rows that do not count
  int width;                  // of a row of the gradient
  int64_t first_tile, tiles;  // of all problems' rows, those of one problem after the other's
  float* gains;               // [tiles][kL1GainRows][columns], with softmax
  float* sums;                // [tiles][kL1GainRows][ceil(columns / kL1GainColumns)], with softmax
};

void l1_cost_backward(const L1Problems& of, const L1Backward& backward, void* stream);

}  // namespace kd
