// Where a block finds its part of a row pair. Sweeps are written once, over vectors of 16 bytes in shared memory:
//
//   OnChipSlice    all of the part is there, read from global memory once
//   StreamedSlice  vectors come through a ring of a few for every thread, once for every sweep
//
// Vectors are those of the student's row in global memory, whatever its address: the first may begin before the row and
// the last end behind it. A teacher or a gradient whose rows lie otherwise within 16 bytes is read or written entry by
// entry, which takes longer and is as right.
#pragma once

#include "row_arguments.h"
#include "row_entries.h"
#include "row_plan.h"

namespace kd {

// Stands for entries beyond the row's ends: exponential 0, and differences of two of them stay finite.
constexpr float kBeyondRow = -1e30f;

template <int kBytes> struct RowPair {
  static constexpr int kEntries = kVectorBytes / kBytes;
  using Bits = typename Entry<kBytes>::Bits;

  const Bits* student;
  const Bits* teacher;
  Bits* grad;
  int columns;
  int phase;  // entries by which the first vector begins before the row
  bool teacher_in_phase, grad_in_phase;

  KD_DEVICE static int phase_of(const Bits* p) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(p) % kVectorBytes / kBytes);
  }

  KD_DEVICE RowPair(const RowArguments& of, int64_t row)
      : student(static_cast<const Bits*>(of.student) + row * of.student_stride),
        teacher(static_cast<const Bits*>(of.teacher) + row * of.teacher_stride),
        grad(of.grad ? static_cast<Bits*>(of.grad) + row * of.grad_stride : nullptr),
        columns(of.columns),
        phase(phase_of(student)),
        teacher_in_phase(phase_of(teacher) == phase),
        grad_in_phase(phase_of(grad) == phase) {}

  KD_DEVICE int vectors() const { return (phase + columns + kEntries - 1) / kEntries; }
  KD_DEVICE int first_entry(int vector) const { return vector * kEntries - phase; }
  KD_DEVICE bool has_all(int entry) const { return entry >= 0 && entry + kEntries <= columns; }
  KD_DEVICE bool has(int entry) const { return entry >= 0 && entry < columns; }

  // Those of a vector's entries that the row has, one by one.
  KD_DEVICE void copy_in(const Bits* row, int entry, uint4* vector) const {
    Bits* to = reinterpret_cast<Bits*>(vector);
#pragma unroll 1
    for (int k = 0; k < kEntries; ++k) {
      if (has(entry + k)) to[k] = row[entry + k];
    }
  }

  KD_DEVICE void copy_out(const uint4* vector, int entry) const {
    const Bits* from = reinterpret_cast<const Bits*>(vector);
#pragma unroll 1
    for (int k = 0; k < kEntries; ++k) {
      if (has(entry + k)) grad[entry + k] = from[k];
    }
  }
};

// A vector of either side, and what stands for the entries of them.
template <int kBytes> struct Place {
  int entry;  // index of the first within the row
  uint4* student;
  uint4* teacher;
  uint4* spare;  // of OnChipSlice, where it has room

  // Part `part` of the vectors in words; entries the row does not have are kBeyondRow.
  template <int kWords> KD_DEVICE void read(const RowPair<kBytes>& row, bool half, int part,
                                            float (&x)[4 * kWords / kBytes], float (&y)[4 * kWords / kBytes]) const {
    constexpr int kCount = 4 * kWords / kBytes;
    unpack<kBytes>(Words<kWords>::load(student_part(part * kWords)), half, x);
    unpack<kBytes>(Words<kWords>::load(teacher_part(part * kWords)), half, y);
    if (!row.has_all(entry)) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const bool inside = row.has(entry + part * kCount + k);
        x[k] = inside ? x[k] : kBeyondRow;
        y[k] = inside ? y[k] : kBeyondRow;
      }
    }
  }

  KD_DEVICE uint32_t* student_part(int word) const { return reinterpret_cast<uint32_t*>(student) + word; }
  KD_DEVICE uint32_t* teacher_part(int word) const { return reinterpret_cast<uint32_t*>(teacher) + word; }
  KD_DEVICE uint32_t* spare_part(int word) const { return reinterpret_cast<uint32_t*>(spare) + word; }

  // The student's vector is the gradient's from here on.
  KD_DEVICE void write_gradient(const RowPair<kBytes>& row) const { write_gradient(row, Words<4>::load(student)); }

  KD_DEVICE void write_gradient(const RowPair<kBytes>& row, const Words<4>& gradient) const {
    if (row.grad_in_phase && row.has_all(entry)) {
      store_streaming16(row.grad + entry, make_uint4(gradient.w[0], gradient.w[1], gradient.w[2], gradient.w[3]));
    } else {
      gradient.store(student);
      row.copy_out(student, entry);
    }
  }
};

template <int kBytes> class OnChipSlice {
 public:
  static constexpr bool kClustered = true;

  // `memory`: twice `room` vectors, or thrice where h of entries of 16 bits is kept.
  KD_DEVICE OnChipSlice(uint4* memory, int room, Barrier* arrived)
      : student_(memory), teacher_(memory + room), spare_(memory + 2 * room), arrived_(arrived) {}

  // Has the block's vectors [begin, end) of a row copied. By all threads, none of which needs the slice any more.
  KD_DEVICE void request(const RowPair<kBytes>& row, int begin, int end) {
    begin_ = begin;
    vectors_ = end > begin ? end - begin : 0;
    // Only the row's very ends have no vector of their own.
    const int whole_begin = begin == 0 && row.phase > 0 ? 1 : begin;
    const int all = (row.phase + row.columns) / RowPair<kBytes>::kEntries;  // of the row, but one that is cut short
    const int whole_end = end < all ? end : all;
    if (threadIdx.x == 0) {
      const unsigned bytes = whole_end > whole_begin ? (whole_end - whole_begin) * kVectorBytes : 0;
      barrier_expect(arrived_, row.teacher_in_phase ? 2 * bytes : bytes);
      if (bytes > 0) {
        const int entry = row.first_entry(whole_begin);
        bulk_load(student_ + (whole_begin - begin), row.student + entry, bytes, arrived_);
        if (row.teacher_in_phase) bulk_load(teacher_ + (whole_begin - begin), row.teacher + entry, bytes, arrived_);
      }
    }
    for (int v = begin + threadIdx.x; v < end; v += blockDim.x) {
      const bool whole = v >= whole_begin && v < whole_end;
      if (whole && row.teacher_in_phase) continue;
      if (!whole) row.copy_in(row.student, row.first_entry(v), student_ + (v - begin));
      row.copy_in(row.teacher, row.first_entry(v), teacher_ + (v - begin));
    }
  }

  KD_DEVICE void await() {
    barrier_wait(arrived_, parity_);
    parity_ ^= 1;
    __syncthreads();  // entries that threads have copied
  }

  // A new row may come where this one lies.
  KD_DEVICE void release() {
    async_fence_shared();  // what was kept here comes before what bulk loads will write
    __syncthreads();
  }

  KD_DEVICE int vectors() const { return vectors_; }

  // body(place) for the block's vectors first, first + stride, ... before `end`.
  template <class Body> KD_DEVICE void sweep(const RowPair<kBytes>& row, int first, int stride, int end, Body body) {
#pragma unroll 1
    for (int v = first; v < end; v += stride) {
      body(Place<kBytes>{row.first_entry(begin_ + v), student_ + v, teacher_ + v, spare_ + v});
    }
  }

 private:
  uint4* student_;
  uint4* teacher_;
  uint4* spare_;
  Barrier* arrived_;
  unsigned parity_ = 0;
  int begin_ = 0, vectors_ = 0;
};

template <int kBytes> class StreamedSlice {
 public:
  static constexpr bool kClustered = false;

  KD_DEVICE explicit StreamedSlice(uint4* memory) : ring_(memory + threadIdx.x) {}

  KD_DEVICE void request(const RowPair<kBytes>&, int begin, int end) { vectors_ = end - begin; }
  KD_DEVICE int vectors() const { return vectors_; }

  // No thread looks at what another has copied.
  template <class Body> KD_DEVICE void sweep(const RowPair<kBytes>& row, int first, int stride, int end, Body body) {
    int ahead = first;
#pragma unroll 1
    for (int turn = 0; turn < kRing - 1; ++turn, ahead += stride) copy(row, ahead, end, turn);
    int turn = 0;
#pragma unroll 1
    for (int v = first; v < end; v += stride, ahead += stride) {
      copy(row, ahead, end, (turn + kRing - 1) % kRing);
      copy_wait<kRing - 1>();
      body(Place<kBytes>{row.first_entry(v), student(turn), teacher(turn), nullptr});
      turn = (turn + 1) % kRing;
    }
    copy_wait<0>();
  }

 private:
  KD_DEVICE uint4* student(int turn) const { return ring_ + 2 * turn * blockDim.x; }
  KD_DEVICE uint4* teacher(int turn) const { return ring_ + (2 * turn + 1) * blockDim.x; }

  KD_DEVICE void copy(const RowPair<kBytes>& row, int v, int end, int turn) {
    if (v < end) {
      const int entry = row.first_entry(v);
      if (row.has_all(entry)) {
        copy16_async(student(turn), row.student + entry);
      } else {
        row.copy_in(row.student, entry, student(turn));
      }
      if (row.has_all(entry) && row.teacher_in_phase) {
        copy16_async(teacher(turn), row.teacher + entry);
      } else {
        row.copy_in(row.teacher, entry, teacher(turn));
      }
    }
    copy_commit();
  }

  uint4* ring_;
  int vectors_ = 0;
};

}  // namespace kd
