// The names of simd_avx512.h in plain C++, for any machine: arrays and loops, which the compiler
// turns into what the baseline has. The definition that the other three are tested against.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace GEMELO_ISA {

struct F {
  float x[16];
};
struct I {
  int32_t x[16];
};
struct B {
  uint8_t x[64];
};

constexpr int kTokens = 4;
constexpr int kRowBlocks = 1;

#define GEMELO_EACH(n) for (int i = 0; i < (n); i++)

// ---- floats -------------------------------------------------------------------------------------

static inline F operator+(F a, F b) {
  GEMELO_EACH(16) a.x[i] += b.x[i];
  return a;
}
static inline F operator-(F a, F b) {
  GEMELO_EACH(16) a.x[i] -= b.x[i];
  return a;
}
static inline F operator*(F a, F b) {
  GEMELO_EACH(16) a.x[i] *= b.x[i];
  return a;
}
static inline F operator/(F a, F b) {
  GEMELO_EACH(16) a.x[i] /= b.x[i];
  return a;
}
static inline F set(float v) {
  F a;
  GEMELO_EACH(16) a.x[i] = v;
  return a;
}
static inline F load(const float* p) {
  F a;
  std::memcpy(a.x, p, sizeof a.x);
  return a;
}
static inline void store(float* p, F a) { std::memcpy(p, a.x, sizeof a.x); }
static inline F fma(F a, F b, F c) {
  GEMELO_EACH(16) c.x[i] += a.x[i] * b.x[i];
  return c;
}
static inline F larger(F a, F b) {
  GEMELO_EACH(16) a.x[i] = a.x[i] > b.x[i] ? a.x[i] : b.x[i];
  return a;
}
static inline F smaller(F a, F b) {
  GEMELO_EACH(16) a.x[i] = a.x[i] < b.x[i] ? a.x[i] : b.x[i];
  return a;
}
static inline F magnitude(F a) {
  GEMELO_EACH(16) a.x[i] = std::fabs(a.x[i]);
  return a;
}
static inline float sum(F a) {
  for (int half = 8; half; half /= 2) GEMELO_EACH(half) a.x[i] += a.x[i + half];
  return a.x[0];
}
static inline float largest(F a) {
  for (int half = 8; half; half /= 2)
    GEMELO_EACH(half) a.x[i] = a.x[i] > a.x[i + half] ? a.x[i] : a.x[i + half];
  return a.x[0];
}
static inline F pair(float a, float b) {
  F y;
  GEMELO_EACH(16) y.x[i] = i < 8 ? a : b;
  return y;
}
static inline F fours(const float* p) {
  F y;
  GEMELO_EACH(16) y.x[i] = p[i / 4];
  return y;
}

static inline float of_bits(uint32_t bits) {
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
static inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
static inline float widen_half(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF;
  if (rest >= 0x7C00) return of_bits(sign | 0x7F800000 | rest << 13);  // infinity or NaN
  const float y = of_bits(rest << 13) * 0x1p112f;                      // subnormals too
  return of_bits(sign | bits_of(y));
}
static inline F pair_of_halves(const void* a, const void* b) {
  uint16_t x, y;
  std::memcpy(&x, a, 2);
  std::memcpy(&y, b, 2);
  return pair(widen_half(x), widen_half(y));
}
static inline F load_half(const uint16_t* p) {
  F a;
  uint16_t h;
  GEMELO_EACH(16) {
    std::memcpy(&h, p + i, 2);
    a.x[i] = widen_half(h);
  }
  return a;
}
static inline F load_bf16(const uint16_t* p) {
  F a;
  uint16_t h;
  GEMELO_EACH(16) {
    std::memcpy(&h, p + i, 2);
    a.x[i] = of_bits((uint32_t)h << 16);
  }
  return a;
}
// Round to nearest even; a NaN keeps a bit that says so.
static inline void store_bf16(uint16_t* p, F a) {
  GEMELO_EACH(16) {
    const uint32_t bits = bits_of(a.x[i]);
    const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    const uint16_t h = nan ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    std::memcpy(p + i, &h, 2);
  }
}

// ---- integers -----------------------------------------------------------------------------------

static inline I all(int32_t v) {
  I a;
  GEMELO_EACH(16) a.x[i] = v;
  return a;
}
static inline I zeros() { return all(0); }
static inline I load(const int32_t* p) {
  I a;
  std::memcpy(a.x, p, sizeof a.x);
  return a;
}
static inline void store(int32_t* p, I a) { std::memcpy(p, a.x, sizeof a.x); }
static inline F floats(I a) {
  F y;
  GEMELO_EACH(16) y.x[i] = (float)a.x[i];
  return y;
}
// What has no nearest integer (NaN, infinity) becomes the least, as the processors have it.
static inline I nearest(F a) {
  I y;
  GEMELO_EACH(16)
  y.x[i] = std::fabs(a.x[i]) < 2147483648.0f ? (int32_t)std::nearbyintf(a.x[i]) : INT32_MIN;
  return y;
}
static inline F power_of_two(I n) {
  F y;
  GEMELO_EACH(16) y.x[i] = of_bits((uint32_t)(n.x[i] + 127) << 23);
  return y;
}
static inline void store_bytes(int8_t* p, I a) {
  GEMELO_EACH(16) p[i] = (int8_t)(a.x[i] > 127 ? 127 : a.x[i] < -128 ? -128 : a.x[i]);
}

// ---- bytes --------------------------------------------------------------------------------------

static inline I dot(I sums, B u, B s) {
  GEMELO_EACH(64) sums.x[i / 4] += (int32_t)u.x[i] * (int8_t)s.x[i];
  return sums;
}
static inline B join(const void* low, const void* high) {
  B y;
  std::memcpy(y.x, low, 32);
  std::memcpy(y.x + 32, high, 32);
  return y;
}
static inline B load_bytes(const void* p) { return join(p, (const uint8_t*)p + 32); }
static inline void store(uint8_t* p, B a) { std::memcpy(p, a.x, sizeof a.x); }
static inline B bytes_of(I x) {
  B y;
  std::memcpy(y.x, x.x, sizeof y.x);
  return y;
}
static inline B either(B a, B b) {
  GEMELO_EACH(64) a.x[i] |= b.x[i];
  return a;
}
static inline B flip(B a, uint8_t bits) {
  GEMELO_EACH(64) a.x[i] ^= bits;
  return a;
}
static inline B low_nibbles(B a) {
  GEMELO_EACH(64) a.x[i] &= 15;
  return a;
}
static inline B high_nibbles(B a) {
  GEMELO_EACH(64) a.x[i] >>= 4;
  return a;
}
static inline B shift_left_4(B a) {
  GEMELO_EACH(64) a.x[i] = (uint8_t)(a.x[i] << 4);
  return a;
}
static inline B fork(const void* p, int first, int second, uint8_t mask) {
  B y = join(p, p);
  GEMELO_EACH(64) y.x[i] = (uint8_t)(y.x[i] >> (i < 32 ? first : second)) & mask;
  return y;
}
static inline B nibbles(const void* low, const void* high) {
  B y;
  const uint8_t *a = (const uint8_t*)low, *b = (const uint8_t*)high;
  GEMELO_EACH(16) {
    y.x[i] = a[i] & 15;
    y.x[i + 16] = a[i] >> 4;
    y.x[i + 32] = b[i] & 15;
    y.x[i + 48] = b[i] >> 4;
  }
  return y;
}
static inline B where(uint64_t bits, uint8_t value) {
  B y;
  GEMELO_EACH(64) y.x[i] = bits >> i & 1 ? value : 0;
  return y;
}
template <int quarter>
static inline F widen(B a) {
  F y;
  GEMELO_EACH(16) y.x[i] = (float)a.x[16 * quarter + i];
  return y;
}

#undef GEMELO_EACH

}  // namespace GEMELO_ISA
