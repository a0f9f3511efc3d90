// Batched Sinkhorn iterations on a GPU: what a caller hands over, and which kernel a problem gets.
//
// Problems of up to 128 rows and columns are solved by the threads of a tile, which hold K twice, by rows and by
// columns, in their registers. Larger ones are shared out to a cluster of blocks, which hold K in shared memory where
// it fits, otherwise in the workspace. With lengths every problem goes by its own size: results are those of the
// smaller problem, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kd/config.h"
#include "kd/dtype.h"

namespace kd::cuda {

struct SinkhornProblems {
  int64_t problems, rows, columns;
  const void* cost;  // of any strides, in elements; no float64
  int64_t problem_stride, row_stride, column_stride;
  DType dtype;
  const float* a;          // [problems][rows] or null: ones
  const float* b;          // [problems][columns] or null
  const double* eps;       // [problems]
  const int64_t* lengths;  // [problems][2]: rows and columns of each, or null: all
  int64_t iterations;      // at most, and at least one
  bool entropic;           // the value: <P, C> - eps h(P), otherwise <P, C>
};

// Of every output only what lies inside the lengths is written, and of history only the iterations that were run.
struct SinkhornCall {
  SinkhornProblems of;
  const float* start;  // [problems][columns]: potentials to begin with, or null: zeros
  double tolerance;    // negative: none
  float* value;        // [problems]
  float* f;            // [problems][rows]
  float* g;            // [problems][columns]
  float* plan;         // [problems][rows][columns] or null
  int64_t* run;        // [problems]
  float* error;        // [problems]
  float* history;      // [problems][iterations][rows + columns]: rho and sigma of each, or null
  double* offsets;     // [problems][3][rows + columns]: frames A, B and the last, or null
  float* workspace;    // sinkhorn_workspace floats
};

struct SinkhornBackwardCall {
  SinkhornProblems of;
  const float* upstream;       // [problems]
  const float* plan_upstream;  // [problems][rows][columns] or null
  const int64_t* run;
  const float* history;
  const double* offsets;
  void* cost_gradient;  // [problems][rows][columns] of the cost's dtype, or null
  float* total;         // as many float32: cost_gradient itself where it is that, else scratch; beyond tiles never null
  float* a_gradient;    // [problems][rows] or null
  float* b_gradient;    // [problems][columns] or null
  float* workspace;
};

struct Device {
  int capability;  // 90 for sm_90
  int multiprocessors;
  int64_t shared_bytes;  // that a block may have
};

// Rows and columns of the smallest tile that holds the problem; 0 where none does.
KD_HD int sinkhorn_tile(int64_t rows, int64_t columns) {
  const int64_t lines = rows > columns ? rows : columns;
  return lines <= 32 ? 32 : lines <= 64 ? 64 : lines <= 128 ? 128 : 0;
}

// A large problem is summed in as many parts whatever the number of blocks, so that this changes no bit.
constexpr int kSinkhornParts = 8;
// Rank-one terms that the backward pass gathers before it adds them up.
constexpr int kSinkhornTerms = 48;

struct SinkhornShape {  // of a large problem's cluster
  int blocks;           // divides the parts
  bool on_chip;         // whether K is in shared memory
  size_t kernel_bytes;  // of shared memory for it in each block
};

// Entries from one row of K to the next: whole float4.
KD_HD int64_t sinkhorn_pitch(int64_t columns) { return (columns + 3) / 4 * 4; }

// Bytes of shared memory of a block beside K.
constexpr int64_t kSinkhornShared = 4096;

// As few blocks as hold K on chip, and more where the device would be idle otherwise.
inline SinkhornShape sinkhorn_shape(const SinkhornProblems& of, const Device& device) {
  const int most = device.capability >= 90 ? kSinkhornParts : 1;
  const auto bytes = [&](int blocks) {
    return kSinkhornParts / blocks * ((of.rows + kSinkhornParts - 1) / kSinkhornParts) * sinkhorn_pitch(of.columns) * 4;
  };
  int blocks = 1;
  const int64_t room = device.shared_bytes - kSinkhornShared;
  while (blocks < most && bytes(blocks) > room) blocks *= 2;
  while (blocks < most && of.problems * blocks * 2 <= device.multiprocessors) blocks *= 2;
  const bool on_chip = bytes(blocks) <= room;
  return {blocks, on_chip, on_chip ? size_t(bytes(blocks)) : 0};
}

// Vectors of each side that a large problem keeps in the workspace, beside offsets, parts of sums and terms.
constexpr int kSinkhornVectors = 6;

KD_HD int64_t sinkhorn_workspace_of_one(const SinkhornProblems& of, int terms, bool on_chip) {
  const int64_t rows = sinkhorn_pitch(of.rows), columns = sinkhorn_pitch(of.columns);
  const int64_t flags = 4 * kSinkhornParts;
  return (2 + kSinkhornVectors + terms) * (rows + columns) + kSinkhornParts * columns + flags +
         (on_chip ? 0 : of.rows * columns);
}

// Floats.
inline int64_t sinkhorn_workspace(const SinkhornProblems& of, const Device& device, bool backward) {
  if (sinkhorn_tile(of.rows, of.columns) != 0) return 0;
  const bool on_chip = sinkhorn_shape(of, device).on_chip;
  return of.problems * sinkhorn_workspace_of_one(of, backward ? kSinkhornTerms : 0, on_chip);
}

void run_sinkhorn(const SinkhornCall& call, const Device& device, void* stream);
void run_sinkhorn_backward(const SinkhornBackwardCall& call, const Device& device, void* stream);

}  // namespace kd::cuda
