// What device code uses beyond C++ and CUDA's own names: special functions, conversions, clusters, barriers in shared
// memory and asynchronous copies. Compiled by nvcc these are single instructions; any other compiler takes an emulation
// of the machine on the processor (tests/native/emulation), so that the very same kernels can be run and checked there.
#pragma once

#ifdef __CUDACC__

#include <cuda_fp16.h>

#include <cstdint>

#define KD_DEVICE __device__ __forceinline__

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define KD_HAS_CLUSTERS 1
#else
#define KD_HAS_CLUSTERS 0
#endif

namespace kd {

// The block's dynamic shared memory, 128-byte aligned. Kernels have no other.
template <class T> KD_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char kd_dynamic_shared[];
  return reinterpret_cast<T*>(kd_dynamic_shared);
}

KD_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Special functions. Denormal arguments and results are 0.
KD_DEVICE float exp2_fast(float x) {  // relative error 2^-22
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

KD_DEVICE float log2_fast(float x) {  // absolute error 2^-22 for x in [1/2, 2], relative elsewhere
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

KD_DEVICE float reciprocal_fast(float x) {  // relative error 2^-23
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Elements of 16 bits, rounded to nearest, ties to even.
KD_DEVICE float from_bfloat16(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }
KD_DEVICE float from_half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
KD_DEVICE uint16_t to_bfloat16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
KD_DEVICE uint16_t to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
KD_DEVICE uint32_t to_bfloat162(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
KD_DEVICE uint32_t to_half2(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// The larger of either half of two words; of a NaN and a number the number.
KD_DEVICE uint32_t max_bfloat162(uint32_t a, uint32_t b) {
  uint32_t bits;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(bits) : "r"(a), "r"(b));
  return bits;
}
KD_DEVICE uint32_t max_half2(uint32_t a, uint32_t b) {
  uint32_t bits;
  asm("max.f16x2 %0, %1, %2;" : "=r"(bits) : "r"(a), "r"(b));
  return bits;
}

// Global memory that is read or written once: 16 aligned bytes past the first-level cache.
KD_DEVICE uint4 load_streaming16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

KD_DEVICE void store_streaming16(void* p, uint4 v) {
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Clusters; before sm_90 every block is one of its own.
KD_DEVICE unsigned cluster_rank() {
#if KD_HAS_CLUSTERS
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

KD_DEVICE unsigned cluster_size() {
#if KD_HAS_CLUSTERS
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

KD_DEVICE void cluster_arrive() {
#if KD_HAS_CLUSTERS
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

KD_DEVICE void cluster_wait() {
#if KD_HAS_CLUSTERS
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

KD_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The same place in the shared memory of another block of the cluster, which must have started and not ended yet.
template <class T> KD_DEVICE T* of_block(T* shared, unsigned rank) {
#if KD_HAS_CLUSTERS
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return shared;
#endif
}

// Barriers in shared memory (mbarrier): a phase ends when the arrivals it was made for have come, and as many bytes as
// they expect. Waiting for a parity returns when the phase of that parity is over; the first phase's is 0.
using Barrier = uint64_t;

KD_DEVICE void barrier_init(Barrier* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// By the thread that made barriers, before others of the cluster, and copies, may use them.
KD_DEVICE void barrier_init_fence() {
#if KD_HAS_CLUSTERS
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Arrives, and lets the phase expect the bytes of bulk loads.
KD_DEVICE void barrier_expect(Barrier* barrier, unsigned bytes) {
#if KD_HAS_CLUSTERS
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

KD_DEVICE void barrier_arrive(Barrier* barrier) {
#if KD_HAS_CLUSTERS
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

KD_DEVICE void barrier_wait(Barrier* barrier, unsigned parity) {
#if KD_HAS_CLUSTERS
  uint32_t over;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!over);
#endif
}

// Bulk copies between global memory and this block's shared memory: addresses and sizes are multiples of 16 bytes. A
// load tells a barrier, stores are waited for by the thread that made them, in the groups it committed.
KD_DEVICE void bulk_load(void* shared, const void* source, unsigned bytes, Barrier* barrier) {
#if KD_HAS_CLUSTERS
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(source), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#endif
}

KD_DEVICE void bulk_store(void* destination, const void* shared, unsigned bytes) {
#if KD_HAS_CLUSTERS
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
#endif
}

KD_DEVICE void bulk_store_commit() {
#if KD_HAS_CLUSTERS
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Until of the groups but the last N the shared memory has been read.
template <int N> KD_DEVICE void bulk_store_wait_read() {
#if KD_HAS_CLUSTERS
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
#endif
}

// Until all groups but the last N are done.
template <int N> KD_DEVICE void bulk_store_wait() {
#if KD_HAS_CLUSTERS
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// What this thread wrote to shared memory is seen by the bulk stores of those it synchronises with afterwards.
KD_DEVICE void async_fence_shared() {
#if KD_HAS_CLUSTERS
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Copies of 16 aligned bytes to shared memory that go on while the thread does; it waits for those it committed.
KD_DEVICE void copy16_async(void* shared, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(source) : "memory");
}

KD_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> KD_DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// A barrier of some of the block's warps; 0 is that of __syncthreads.
KD_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace kd

#else

#include "emulation.h"

#endif
