"""Elementary functions that keep every digit where teacher and student agree; the twin of csrc/include/kd/elementary.h.

The polynomials and their ranges are those of the C++ header, where they are derived.
"""

import triton
import triton.language as tl

LN2 = tl.constexpr(0.69314718055994530942)
LOG2_E = tl.constexpr(1.44269504088896340736)
TINY = tl.constexpr(2.0**-126)  # the smallest normal float32; anything less would make a float64 of what it meets
FAR_DECAY = tl.constexpr(87.0)  # e^-x is zero beside 1 from here on


@triton.jit
def pow2(n):
    """2^n for an integral n in [-126, 127]."""
    return ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def decay(x):
    """e^-x, e^-x - 1 and e^-x - 1 + x, each to relative precision, for 0 <= x <= FAR_DECAY."""
    n = tl.floor(0.5 - x * LOG2_E)
    r = tl.fma(n, -0.693359375, -x)
    r = tl.fma(n, 2.12194440e-4, r)
    q = tl.fma(r, 0.00139050209, 0.00836296938)
    q = tl.fma(r, q, 0.0416667685)
    q = tl.fma(r, q, 0.166665792)
    q = tl.fma(r, q, 0.5)
    rr = r * r * q
    s = pow2(n)
    s1 = s - 1.0
    return tl.fma(s, r + rr, s), tl.fma(s, r + rr, s1), tl.fma(s, rr, tl.fma(s1, r + 1.0, r + x))


@triton.jit
def log_bend(f):
    """f - log(1 + f) for sqrt(1/2) - 1 <= f <= sqrt(2) - 1."""
    r = tl.fma(f, 0.0750829875, -0.127630308)
    r = tl.fma(f, r, 0.13201119)
    r = tl.fma(f, r, -0.142029911)
    r = tl.fma(f, r, 0.166196704)
    r = tl.fma(f, r, -0.20001173)
    r = tl.fma(f, r, 0.250009656)
    r = tl.fma(f, r, -0.333333313)
    r = tl.fma(f, r, 0.5)
    return f * f * r


@triton.jit
def log1p(y):
    """log(1 + y) and y - log(1 + y), to relative precision, for y > -1."""
    bits = tl.maximum(y + 1.0, TINY).to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23  # 1 + y = 2^n m, sqrt(1/2) <= m < sqrt(2)
    near = n == 0
    f = tl.where(near, y, (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0)
    bend = log_bend(f)
    value = tl.fma(n.to(tl.float32), LN2, f - bend)
    return value, tl.where(near, bend, y - value)


@triton.jit
def log(a):
    """log(a) for a normal a > 0."""
    bits = a.to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    f = (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0
    return tl.fma(n.to(tl.float32), LN2, f - log_bend(f))
