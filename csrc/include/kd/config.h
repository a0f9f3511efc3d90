// Qualifiers and the namespace every header of the native core opens.
#pragma once

// A sweep hands its body over as a lambda; the compiler inlines one for certain only when told.
#define KD_LAMBDA __attribute__((always_inline))

#ifdef __CUDACC__
#define KD_HD __host__ __device__ __forceinline__
#else
#define KD_HD inline __attribute__((always_inline))
#endif

// The CPU backend compiles these headers once per instruction set, with other compiler flags each time. The inline
// namespace keeps the copies apart: without it the linker could keep the AVX-512 body of a function for all callers.
#ifndef KD_ISA
#define KD_ISA portable
#endif
#define KD_BEGIN \
  namespace kd { \
  inline namespace KD_ISA {
#define KD_END \
  }            \
  }
