// CUDA's keywords, types and intrinsics, and the primitives of csrc/cuda, on the processor.
//
// Every thread is a fiber. It runs undisturbed to its next synchronisation point: there the scheduler picks another, in
// a random order that a seed fixes. Shared memory has its exact size, is NaN until something is written, and is gone
// with its block. Asynchronous copies are carried out late. What the machine leaves undefined is reported, and ends the
// process. Blocks of one cluster run at a time, clusters one after another in random order.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "cpu/storage.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
#define KD_DEVICE inline
#define KD_HAS_CLUSTERS 1

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

template <class T, int N> struct EmulatedVector;
template <class T> struct alignas(2 * sizeof(T)) EmulatedVector<T, 2> {
  T x, y;
};
template <class T> struct alignas(16) EmulatedVector<T, 4> {
  T x, y, z, w;
};
using float2 = EmulatedVector<float, 2>;
using float4 = EmulatedVector<float, 4>;
using int2 = EmulatedVector<int, 2>;
using int4 = EmulatedVector<int, 4>;
using uint2 = EmulatedVector<unsigned, 2>;
using uint4 = EmulatedVector<unsigned, 4>;
using double2 = EmulatedVector<double, 2>;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// Of the thread that is running.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace kd::emulation {

// Where the device code is that asks for something: default arguments are evaluated at the call.
struct Site {
  const char* file;
  int line;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
};

[[noreturn]] void fail(const Site& site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// What the lanes of a warp do together: they hand over a word each.
enum class Collective { kSync, kShuffle, kBallot };
// A lane of the mask that does not come is an error, as is one that comes with another mask or from another line. Of a
// shuffle the word of lane `source` is returned, of a ballot the lanes whose word is not 0.
uint64_t collective(Collective what, uint32_t mask, uint64_t word, unsigned source, const Site& site);
unsigned lane();

void block_barrier(int id, int threads, const Site& site);  // threads 0: all that have not ended

void* shared_memory();
void* in_block(void* shared, unsigned rank, const Site& site);
unsigned rank_in_cluster();
unsigned blocks_in_cluster();
void arrive_in_cluster(const Site& site);
void wait_in_cluster(const Site& site);

void make_barrier(uint64_t* barrier, unsigned arrivals, const Site& site);
void publish_barriers();
void arrive(uint64_t* barrier, unsigned bytes, const Site& site);
void wait(uint64_t* barrier, unsigned parity, const Site& site);

// A copy tells its barrier, or belongs to the group that its thread commits next.
enum class Copying { kBulkLoad, kBulkStore, kLoad };
void copy(Copying how, void* to, const void* from, size_t bytes, uint64_t* barrier, const Site& site);
void commit(Copying how);
void wait_for_copies(Copying how, int but, const Site& site);  // all groups but the last `but`
void fence_bulk_stores();

void check_aligned(const void* p, size_t bytes, const Site& site);
float off_by(float exact, float argument, float error);  // within the error, reproducibly

// Runs body(arguments) in every thread of every block.
void run(dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster, void (*body)(const void*),
         const void* arguments);

template <class T> uint64_t word_of(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T> T value_of(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

template <class T> T shuffle(uint32_t mask, T value, unsigned source, const Site& site) {
  return value_of<T>(collective(Collective::kShuffle, mask, word_of(value), source, site));
}

// Lanes in segments of `width`: one that would read beyond its segment keeps its own value.
inline unsigned within(unsigned source, int width) {
  const unsigned first = lane() / width * width;
  return source >= first && source < first + width ? source : lane();
}

}  // namespace kd::emulation

using EmulatedSite = kd::emulation::Site;

inline void __syncthreads(EmulatedSite site = EmulatedSite::here()) { kd::emulation::block_barrier(0, 0, site); }

inline void __syncwarp(unsigned mask = 0xffffffffu, EmulatedSite site = EmulatedSite::here()) {
  kd::emulation::collective(kd::emulation::Collective::kSync, mask, 0, 0, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EmulatedSite site = EmulatedSite::here()) {
  const unsigned first = kd::emulation::lane() / width * width;
  return kd::emulation::shuffle(mask, value, first + static_cast<unsigned>(source) % width, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EmulatedSite site = EmulatedSite::here()) {
  return kd::emulation::shuffle(mask, value, kd::emulation::within(kd::emulation::lane() ^ lanes, width), site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, EmulatedSite site = EmulatedSite::here()) {
  return kd::emulation::shuffle(mask, value, kd::emulation::within(kd::emulation::lane() + lanes, width), site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, EmulatedSite site = EmulatedSite::here()) {
  return kd::emulation::shuffle(mask, value, kd::emulation::within(kd::emulation::lane() - lanes, width), site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EmulatedSite site = EmulatedSite::here()) {
  return static_cast<unsigned>(
      kd::emulation::collective(kd::emulation::Collective::kBallot, mask, predicate != 0, 0, site));
}

inline int __any_sync(unsigned mask, int predicate, EmulatedSite site = EmulatedSite::here()) {
  return __ballot_sync(mask, predicate, site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, EmulatedSite site = EmulatedSite::here()) {
  return __ballot_sync(mask, predicate, site) == mask;
}

inline float __uint_as_float(unsigned bits) { return kd::emulation::value_of<float>(bits); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(kd::emulation::word_of(x)); }
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
template <class T> T __ldg(const T* p) { return *p; }

namespace kd {

template <class T> T* dynamic_shared() { return static_cast<T*>(emulation::shared_memory()); }

inline float without_denormals(float x) { return abs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }

inline float exp2_fast(float x) {
  return without_denormals(emulation::off_by(std::exp2(without_denormals(x)), x, 0x1p-22f));
}

inline float log2_fast(float x) {
  const float exact = std::log2(without_denormals(x)), size = x >= 0.5f && x <= 2.0f ? 1.0f : abs(exact);
  return exact == 0.0f || !std::isfinite(exact) ? exact : exact + (emulation::off_by(size, x, 0x1p-22f) - size);
}

inline float reciprocal_fast(float x) {
  return without_denormals(emulation::off_by(1.0f / without_denormals(x), x, 0x1p-23f));
}

inline float from_bfloat16(uint16_t bits) { return widen(BFloat16{bits}); }
inline float from_half(uint16_t bits) { return widen(Half{bits}); }

inline uint16_t to_bfloat16(float x) {
  BFloat16 narrowed;
  narrow(x, &narrowed);
  return narrowed.bits;
}

inline uint16_t to_half(float x) {
  Half narrowed;
  narrow(x, &narrowed);
  return narrowed.bits;
}

inline uint32_t to_bfloat162(float low, float high) { return to_bfloat16(low) | uint32_t(to_bfloat16(high)) << 16; }
inline uint32_t to_half2(float low, float high) { return to_half(low) | uint32_t(to_half(high)) << 16; }

inline uint32_t max_bfloat162(uint32_t a, uint32_t b) {
  const auto entry = [](uint32_t word, int shift) { return from_bfloat16(static_cast<uint16_t>(word >> shift)); };
  return to_bfloat162(std::fmax(entry(a, 0), entry(b, 0)), std::fmax(entry(a, 16), entry(b, 16)));
}
inline uint32_t max_half2(uint32_t a, uint32_t b) {
  const auto entry = [](uint32_t word, int shift) { return from_half(static_cast<uint16_t>(word >> shift)); };
  return to_half2(std::fmax(entry(a, 0), entry(b, 0)), std::fmax(entry(a, 16), entry(b, 16)));
}

inline uint4 load_streaming16(const void* p, EmulatedSite site = EmulatedSite::here()) {
  emulation::check_aligned(p, 16, site);
  uint4 value;
  std::memcpy(&value, p, 16);
  return value;
}

inline void store_streaming16(void* p, uint4 value, EmulatedSite site = EmulatedSite::here()) {
  emulation::check_aligned(p, 16, site);
  std::memcpy(p, &value, 16);
}

inline unsigned cluster_rank() { return emulation::rank_in_cluster(); }
inline unsigned cluster_size() { return emulation::blocks_in_cluster(); }
inline void cluster_arrive(EmulatedSite site = EmulatedSite::here()) { emulation::arrive_in_cluster(site); }
inline void cluster_wait(EmulatedSite site = EmulatedSite::here()) { emulation::wait_in_cluster(site); }

inline void cluster_sync(EmulatedSite site = EmulatedSite::here()) {
  cluster_arrive(site);
  cluster_wait(site);
}

template <class T> T* of_block(T* shared, unsigned rank, EmulatedSite site = EmulatedSite::here()) {
  return static_cast<T*>(emulation::in_block(const_cast<std::remove_const_t<T>*>(shared), rank, site));
}

using Barrier = uint64_t;

inline void barrier_init(Barrier* barrier, unsigned arrivals, EmulatedSite site = EmulatedSite::here()) {
  emulation::make_barrier(barrier, arrivals, site);
}
inline void barrier_init_fence() { emulation::publish_barriers(); }
inline void barrier_expect(Barrier* barrier, unsigned bytes, EmulatedSite site = EmulatedSite::here()) {
  emulation::arrive(barrier, bytes, site);
}
inline void barrier_arrive(Barrier* barrier, EmulatedSite site = EmulatedSite::here()) {
  emulation::arrive(barrier, 0, site);
}
inline void barrier_wait(Barrier* barrier, unsigned parity, EmulatedSite site = EmulatedSite::here()) {
  emulation::wait(barrier, parity, site);
}

inline void bulk_load(void* shared, const void* source, unsigned bytes, Barrier* barrier,
                      EmulatedSite site = EmulatedSite::here()) {
  emulation::copy(emulation::Copying::kBulkLoad, shared, source, bytes, barrier, site);
}
inline void bulk_store(void* destination, const void* shared, unsigned bytes,
                       EmulatedSite site = EmulatedSite::here()) {
  emulation::copy(emulation::Copying::kBulkStore, destination, shared, bytes, nullptr, site);
}
inline void bulk_store_commit() { emulation::commit(emulation::Copying::kBulkStore); }
template <int N> void bulk_store_wait_read(EmulatedSite site = EmulatedSite::here()) {
  emulation::wait_for_copies(emulation::Copying::kBulkStore, N, site);
}
template <int N> void bulk_store_wait(EmulatedSite site = EmulatedSite::here()) {
  emulation::wait_for_copies(emulation::Copying::kBulkStore, N, site);
}
inline void async_fence_shared() { emulation::fence_bulk_stores(); }

inline void copy16_async(void* shared, const void* source, EmulatedSite site = EmulatedSite::here()) {
  emulation::copy(emulation::Copying::kLoad, shared, source, 16, nullptr, site);
}
inline void copy_commit() { emulation::commit(emulation::Copying::kLoad); }
template <int N> void copy_wait(EmulatedSite site = EmulatedSite::here()) {
  emulation::wait_for_copies(emulation::Copying::kLoad, N, site);
}

inline void named_barrier_sync(int id, int threads, EmulatedSite site = EmulatedSite::here()) {
  emulation::block_barrier(id, threads, site);
}

// As in csrc/cuda/launch.h.
template <class... Parameters, class... Arguments> void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                                               size_t shared_bytes, unsigned cluster, void*,
                                                               Arguments... arguments) {
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call{kernel, std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)};
  emulation::run(
      grid, block, shared_bytes, cluster,
      [](const void* p) {
        const Call& of = *static_cast<const Call*>(p);
        std::apply(of.first, of.second);
      },
      &call);
}

// Few enough that every one of them has several rows to work on.
template <class... Parameters> int resident_clusters(void (*)(Parameters...), dim3, size_t, unsigned) { return 2; }

}  // namespace kd
