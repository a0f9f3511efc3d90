// The divergences as the row kernels are compiled for them: which KLs the first sweep measures, and the two forms of an
// entry's terms.
#pragma once

#include "kd/divergences/jsd.h"
#include "kd/divergences/kl.h"
#include "kd/divergences/mixture_kl.h"
#include "kd/divergences/todi.h"
#include "kd/divergences/tvd.h"

namespace kd {

// Sums of both KLs. A far row has its value, and what its gradient needs to know of it, from the first sweep.
template <bool Forward, bool Reverse> struct KlRows {
  static constexpr bool kIsKl = true, kIsAkl = false, kForward = Forward, kReverse = Reverse;
  static KD_HD Kl<float, Forward, Reverse> near(float a, float b) { return {a, b}; }
};

// As Jeffreys, with weights that every row has of its own.
struct AklRows : KlRows<true, true> {
  static constexpr bool kIsAkl = true;
};

// `kValueFirst`: near or far is only known from the value itself.
template <bool ValueFirst, bool ForwardKl = !ValueFirst> struct TermRows {
  static constexpr bool kIsKl = false, kForward = ForwardKl, kReverse = false, kValueFirst = ValueFirst;
};

struct JsdRows : TermRows<false> {
  static KD_HD Jsd<Near, float> near(float a, float) { return {a, 1 - a}; }
  static KD_HD Term<float> far(const LogSides<float>& v, float a) { return LogJsd<float>{a, 1 - a}(v); }
};

template <bool OfStudent> struct MixtureRows : TermRows<false> {
  static KD_HD MixtureKl<Near, float, OfStudent> near(float a, float) { return {a, 1 - a}; }
  static KD_HD Term<float> far(const LogSides<float>& v, float a) {
    return LogMixtureKl<float, OfStudent>{a, 1 - a}(v);
  }
};

struct TvdRows : TermRows<true> {
  static KD_HD Tvd<float> near(float, float) { return {}; }
  static KD_HD Term<float> far(const LogSides<float>& v, float) { return LogTvd<float>{}(v); }
  static KD_HD float far_h(float d, float q) { return LogTvd<float>{}.h(d, q); }
};

template <bool UnitBeta> struct TodiRows : TermRows<false> {
  static KD_HD Todi<float, UnitBeta> near(float a, float) { return {a}; }
  static KD_HD Term<float> far(const LogSides<float>& v, float a) {
    return FarTodi<float, UnitBeta>{a}({v.p(), v.q(), v.d()});
  }
};

}  // namespace kd
