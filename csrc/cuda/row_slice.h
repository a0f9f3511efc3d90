// Where a block finds its part of a row pair. Sweeps are written once, over vectors of 16 bytes in shared memory, of
// which the row's first entry begins the first:
//
//   OnChipSlice    all of the part is there, read from global memory once
//   StreamedSlice  vectors come through a ring of a few for every thread, once for every sweep
//
// In global memory a row may begin anywhere within 16 bytes. On chip it is copied as it lies and then moved, and its
// gradient moved back; a streamed one is copied entry by entry, which takes longer. Either way it gives the same bits
// as anywhere else.
#pragma once

#include "row_arguments.h"
#include "row_entries.h"
#include "row_plan.h"

namespace kd {

// Stands for entries beyond the row's end: exponential 0, and differences of two of them stay finite.
constexpr float kBeyondRow = -1e30f;

template <int kBytes> struct RowPair {
  static constexpr int kEntries = kVectorBytes / kBytes;
  using Bits = typename Entry<kBytes>::Bits;

  const Bits* student;
  const Bits* teacher;
  Bits* grad;  // or null
  int columns;

  KD_DEVICE RowPair(const RowArguments& of, int64_t row)
      : student(static_cast<const Bits*>(of.student) + row * of.student_stride),
        teacher(static_cast<const Bits*>(of.teacher) + row * of.teacher_stride),
        grad(of.grad ? static_cast<Bits*>(of.grad) + row * of.grad_stride : nullptr),
        columns(of.columns) {}

  KD_DEVICE int vectors() const { return (columns + kEntries - 1) / kEntries; }
  KD_DEVICE bool has_all(int entry) const { return entry + kEntries <= columns; }  // of a vector from `entry` on
  KD_DEVICE bool has(int entry) const { return entry < columns; }
};

// Entries by which p lies behind an address that is a multiple of 16.
template <class Bits> KD_DEVICE int phase_of(const Bits* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % kVectorBytes / sizeof(Bits));
}

// A vector of either side.
template <int kBytes> struct Place {
  int entry;  // index of the first within the row
  uint4* student;
  uint4* teacher;
  uint4* spare;  // of OnChipSlice, where it has room

  KD_DEVICE uint32_t* student_part(int word) const { return reinterpret_cast<uint32_t*>(student) + word; }
  KD_DEVICE uint32_t* teacher_part(int word) const { return reinterpret_cast<uint32_t*>(teacher) + word; }
  KD_DEVICE uint32_t* spare_part(int word) const { return reinterpret_cast<uint32_t*>(spare) + word; }

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
};

template <int kBytes> class OnChipSlice {
  static constexpr int kEntries = kVectorBytes / kBytes;
  using Bits = typename Entry<kBytes>::Bits;

 public:
  static constexpr bool kClustered = true;

  // `memory`: room for a slice and a vector more of either side, and for another slice where h of 16 bits is kept.
  KD_DEVICE OnChipSlice(uint4* memory, int slice, Barrier* arrived)
      : student_(memory), teacher_(memory + slice + 1), spare_(memory + 2 * (slice + 1)), arrived_(arrived) {}

  // Fetches the block's vectors [begin, end) of a row. By all threads, none of which needs what was there before.
  KD_DEVICE void fetch(const RowPair<kBytes>& row, int begin, int end) {
    begin_ = begin;
    vectors_ = end > begin ? end - begin : 0;
    const Window student(row.student, row.columns, begin, end), teacher(row.teacher, row.columns, begin, end);
    if (threadIdx.x == 0) {
      barrier_expect(arrived_, student.whole_bytes() + teacher.whole_bytes());
      student.copy_whole(student_, arrived_);
      teacher.copy_whole(teacher_, arrived_);
    }
    student.copy_ends(student_);
    teacher.copy_ends(teacher_);
    barrier_wait(arrived_, parity_);
    parity_ ^= 1;
    __syncthreads();  // for the entries that threads have copied
    move(student_, student.phase);
    move(teacher_, teacher.phase);
  }

  // Before the next row comes where this one lies.
  KD_DEVICE void release() {
    async_fence_shared();  // what threads have written here comes before what bulk loads will
    __syncthreads();
  }

  KD_DEVICE int vectors() const { return vectors_; }

  // body(place) for the block's vectors first, first + stride, ... before `end`.
  template <class Body> KD_DEVICE void sweep(const RowPair<kBytes>&, int first, int stride, int end, Body body) {
#pragma unroll 1
    for (int v = first; v < end; v += stride) {
      body(Place<kBytes>{(begin_ + v) * kEntries, student_ + v, teacher_ + v, spare_ + v});
    }
  }

  // Of every place, by the end of a sweep after which nothing but the gradient is needed.
  KD_DEVICE void write_gradient(const RowPair<kBytes>& row, const Place<kBytes>& at, const Words<4>& gradient) const {
    if (phase_of(row.grad) == 0 && row.has_all(at.entry)) {
      store_streaming16(row.grad + at.entry, gradient.vector());
    } else {
      gradient.store(at.student);
    }
  }

  KD_DEVICE void finish_gradient(const RowPair<kBytes>& row) const {
    const int phase = phase_of(row.grad), first = begin_ * kEntries;
    const int last = first + vectors_ * kEntries, end = last < row.columns ? last : row.columns;
    if (phase == 0 && end == last) return;
    __syncthreads();
    const Bits* entries = reinterpret_cast<const Bits*>(student_);
    // Vectors of global memory, of which the first and the last are partly another's.
    const int vectors = (end + phase + kEntries - 1) / kEntries - begin_;
#pragma unroll 1
    for (int v = phase == 0 ? vectors - 1 + threadIdx.x : threadIdx.x; v < vectors; v += blockDim.x) {
      const int entry = first + v * kEntries - phase;
      if (entry >= first && entry + kEntries <= end) {
        const Words<4> from = Words<4>::load(student_ + v - 1), next = Words<4>::load(student_ + v);
        store_streaming16(row.grad + entry, from_entry<kBytes>(from, next, kEntries - phase).vector());
      } else {
#pragma unroll 1
        for (int k = 0; k < kEntries; ++k) {
          if (entry + k >= first && entry + k < end) row.grad[entry + k] = entries[entry + k - first];
        }
      }
    }
  }

 private:
  // The vectors of global memory in which the entries of [begin, end) lie. The row's ends may leave one at either side
  // of which it has but a part.
  struct Window {
    const Bits* vectors;  // of the row, from the first on
    int phase, columns, begin, end, whole_begin, whole_end;

    KD_DEVICE Window(const Bits* row, int columns, int begin, int end_of_slice)
        : vectors(row - phase_of(row)), phase(phase_of(row)), columns(columns), begin(begin) {
      const int last = end_of_slice * kEntries < columns ? end_of_slice * kEntries : columns;
      const int all_whole = (phase + columns) / kEntries;
      end = end_of_slice > begin ? (phase + last + kEntries - 1) / kEntries : begin;
      whole_begin = begin == 0 && phase > 0 ? 1 : begin;
      whole_end = end < all_whole ? end : all_whole;
    }

    KD_DEVICE unsigned whole_bytes() const {
      return whole_end > whole_begin ? (whole_end - whole_begin) * kVectorBytes : 0;
    }
    KD_DEVICE void copy_whole(uint4* to, Barrier* arrived) const {
      if (whole_bytes() > 0)
        bulk_load(to + whole_begin - begin, vectors + whole_begin * kEntries, whole_bytes(), arrived);
    }
    KD_DEVICE void copy_ends(uint4* to) const {
      const int v = threadIdx.x == 0 ? begin : end - 1;
      if (threadIdx.x > 1 || v >= end || (threadIdx.x == 1 && v == begin)) return;
      if (v >= whole_begin && v < whole_end) return;
      Bits* entries = reinterpret_cast<Bits*>(to + v - begin);
#pragma unroll 1
      for (int k = 0; k < kEntries; ++k) {
        const int entry = v * kEntries + k;
        if (entry >= phase && entry < phase + columns) entries[k] = vectors[entry];
      }
    }
  };

  // Entries begin behind the first `phase` of what was copied. Threads write where others have read before, and the
  // first sweep finds every thread at the vectors it has moved.
  KD_DEVICE void move(uint4* side, int phase) const {
    if (phase == 0) return;
#pragma unroll 1
    for (int first = 0; first < vectors_; first += blockDim.x) {
      const int v = first + threadIdx.x;
      Words<4> moved{};
      if (v < vectors_) moved = from_entry<kBytes>(Words<4>::load(side + v), Words<4>::load(side + v + 1), phase);
      __syncthreads();
      if (v < vectors_) moved.store(side + v);
    }
  }

  uint4* student_;
  uint4* teacher_;
  uint4* spare_;
  Barrier* arrived_;
  unsigned parity_ = 0;
  int begin_ = 0, vectors_ = 0;
};

template <int kBytes> class StreamedSlice {
  static constexpr int kEntries = kVectorBytes / kBytes;
  using Bits = typename Entry<kBytes>::Bits;

 public:
  static constexpr bool kClustered = false;

  // `memory`: 2 kRing vectors for every thread.
  KD_DEVICE explicit StreamedSlice(uint4* memory) : ring_(memory + threadIdx.x) {}

  KD_DEVICE void fetch(const RowPair<kBytes>&, int begin, int end) { vectors_ = end - begin; }
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
      body(Place<kBytes>{v * kEntries, student(turn), teacher(turn), nullptr});
      turn = (turn + 1) % kRing;
    }
    copy_wait<0>();
  }

  KD_DEVICE void write_gradient(const RowPair<kBytes>& row, const Place<kBytes>& at, const Words<4>& gradient) const {
    if (phase_of(row.grad) == 0 && row.has_all(at.entry)) {
      store_streaming16(row.grad + at.entry, gradient.vector());
    } else {
      gradient.store(at.student);
      const Bits* entries = reinterpret_cast<const Bits*>(at.student);
#pragma unroll 1
      for (int k = 0; k < kEntries; ++k) {
        if (row.has(at.entry + k)) row.grad[at.entry + k] = entries[k];
      }
    }
  }

  KD_DEVICE void finish_gradient(const RowPair<kBytes>&) const {}

 private:
  KD_DEVICE uint4* student(int turn) const { return ring_ + 2 * turn * blockDim.x; }
  KD_DEVICE uint4* teacher(int turn) const { return ring_ + (2 * turn + 1) * blockDim.x; }

  KD_DEVICE void copy(const RowPair<kBytes>& row, int v, int end, int turn) const {
    if (v < end) {
      copy(row, row.student, v * kEntries, student(turn));
      copy(row, row.teacher, v * kEntries, teacher(turn));
    }
    copy_commit();
  }

  KD_DEVICE static void copy(const RowPair<kBytes>& row, const Bits* side, int entry, uint4* to) {
    if (phase_of(side) == 0 && row.has_all(entry)) {
      copy16_async(to, side + entry);
    } else {
      Bits* entries = reinterpret_cast<Bits*>(to);
#pragma unroll 1
      for (int k = 0; k < kEntries; ++k) {
        if (row.has(entry + k)) entries[k] = side[entry + k];
      }
    }
  }

  uint4* ring_;
  int vectors_ = 0;
};

}  // namespace kd
