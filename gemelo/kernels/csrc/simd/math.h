// exp, GELU and tanh, sixteen at a time, to about two units in the last place.

#pragma once

namespace GEMELO_ISA {

// Cephes' way: e^x = 2^n e^r with |r| <= ln 2 / 2, and a polynomial for e^r.
static inline F exponential(F x) {
  x = larger(smaller(x, set(88.0f)), set(-87.0f));
  const I n = nearest(x * set(1.44269504f));
  const F whole = floats(n);
  const F r = fma(whole, set(2.12194440e-4f), fma(whole, set(-0.693359375f), x));
  F y = set(1.9875691500e-4f);
  y = fma(y, r, set(1.3981999507e-3f));
  y = fma(y, r, set(8.3334519073e-3f));
  y = fma(y, r, set(4.1665795894e-2f));
  y = fma(y, r, set(1.6666665459e-1f));
  y = fma(y, r, set(5.0000001201e-1f));
  return (fma(y, r * r, r) + set(1.0f)) * power_of_two(n);
}

// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which is x times a logistic curve.
static inline F gelu(F x) {
  const F u = x * fma(x * x, set(-2 * 0.7978845608f * 0.044715f), set(-2 * 0.7978845608f));
  return x / (set(1.0f) + exponential(u));
}

static inline F hyperbolic_tangent(F x) {
  return fma(x, set(0.0f), set(1.0f) - set(2.0f) / (exponential(x + x) + set(1.0f)));  // NaN stays
}

}  // namespace GEMELO_ISA
