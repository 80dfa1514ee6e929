// The names of avx512.h for any machine: vectors as GCC and Clang know them, which they turn
// into what the baseline has. The definition that the other three are tested against.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace GEMELO_ISA {

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint8_t B __attribute__((vector_size(64)));

constexpr int kMicroTokens = 2;  // of a micro-tile of the panel GEMM
constexpr int kFloatRegisters = 1, kFloatTokens = 2;  // of the GEMM with plain floats

// What there are no operators for goes lane by lane.
#define GEMELO_EACH(n) for (int i = 0; i < (n); i++)

template <class V>
static inline V read(const void* p) {
  V x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// ---- floats -------------------------------------------------------------------------------------

static inline F set(float x) { return x - F{}; }
static inline F load(const float* p) { return read<F>(p); }
static inline void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
static inline F fma(F a, F b, F c) { return a * b + c; }
static inline F larger(F a, F b) { return a > b ? a : b; }
static inline F smaller(F a, F b) { return a < b ? a : b; }
static inline F magnitude(F x) { return (F)((I)x & 0x7FFFFFFF); }
static inline float sum(F x) {
  for (int half = 8; half; half /= 2) GEMELO_EACH(half) x[i] += x[i + half];
  return x[0];
}
static inline float largest(F x) {
  for (int half = 8; half; half /= 2)
    GEMELO_EACH(half) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0];
}
static inline F pair(float a, float b) { return F{a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b}; }
static inline F fours(const float* p) {
  F y;
  GEMELO_EACH(16) y[i] = p[i / 4];
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
// Round to nearest even; a NaN keeps a bit that says so.
static inline uint16_t narrow_half(float x) {
  const uint32_t rest = bits_of(x) & 0x7FFFFFFF, sign = bits_of(x) >> 16 & 0x8000;
  if (rest >= 0x477FF000) return (uint16_t)(sign | (rest > 0x7F800000 ? 0x7E00 : 0x7C00));
  if (rest < 0x38800000)  // subnormal there, in units of 2^-24
    return (uint16_t)(sign | (uint32_t)std::nearbyintf(of_bits(rest) * 0x1p24f));
  return (uint16_t)(sign | ((rest - 0x38000000 + 0xFFF + (rest >> 13 & 1)) >> 13));
}
static inline F pair_of_halves(const void* a, const void* b) {
  uint16_t x, y;
  std::memcpy(&x, a, 2);
  std::memcpy(&y, b, 2);
  return pair(widen_half(x), widen_half(y));
}
// Sixteen words as integers.
static inline I words(const uint16_t* p) {
  typedef uint16_t Sixteen __attribute__((vector_size(32)));
  return __builtin_convertvector(read<Sixteen>(p), I);
}
static inline F load_half(const uint16_t* p) {
  const I all = words(p), rest = all & 0x7FFF;
  const I finite = (rest - 0x7C00) >> 31;            // all bits, or none
  const I number = (I)((F)(rest << 13) * 0x1p112f);  // subnormals too
  return (F)((all & 0x8000) << 16 | (finite & number) | (~finite & (0x7F800000 | rest << 13)));
}
static inline void store_half(uint16_t* p, F x) {
  GEMELO_EACH(16) {
    const uint16_t h = narrow_half(x[i]);
    std::memcpy(p + i, &h, 2);
  }
}
static inline F load_bf16(const uint16_t* p) {
  return (F)(words(p) << 16);
}
// Round to nearest even; a NaN keeps a bit that says so.
static inline void store_bf16(uint16_t* p, F x) {
  GEMELO_EACH(16) {
    const uint32_t bits = bits_of(x[i]);
    const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    const uint16_t h = nan ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    std::memcpy(p + i, &h, 2);
  }
}

// ---- integers -----------------------------------------------------------------------------------

static inline I all(int32_t x) { return x - I{}; }
static inline I zeros() { return I{}; }
static inline I load(const int32_t* p) { return read<I>(p); }
static inline void store(int32_t* p, I x) { std::memcpy(p, &x, sizeof x); }
static inline F floats(I x) { return __builtin_convertvector(x, F); }
// What has no nearest integer (NaN, infinity) becomes the least, as the processors have it.
static inline I nearest(F x) {
  I y;
  GEMELO_EACH(16)
  y[i] = std::fabs(x[i]) < 2147483648.0f ? (int32_t)std::nearbyintf(x[i]) : INT32_MIN;
  return y;
}
static inline I truncated(F x) {
  I y;
  GEMELO_EACH(16) y[i] = std::fabs(x[i]) < 2147483648.0f ? (int32_t)x[i] : INT32_MIN;
  return y;
}
static inline F power_of_two(I n) { return (F)((n + 127) << 23); }
static inline void store_bytes(int8_t* p, I x) {
  GEMELO_EACH(16) p[i] = (int8_t)(x[i] > 127 ? 127 : x[i] < -128 ? -128 : x[i]);
}

// ---- bytes --------------------------------------------------------------------------------------

typedef int16_t Words __attribute__((vector_size(64)));

// Even and odd bytes apart: their products are words, and every lane adds two of each.
static inline I dot(I sums, B u, B s) {
  const Words even = (Words)((I)u & 0x00FF00FF) * ((Words)s << 8 >> 8);
  const Words odd = (Words)((I)u >> 8 & 0x00FF00FF) * ((Words)s >> 8);
  return sums + (((I)even << 16 >> 16) + ((I)even >> 16)) + (((I)odd << 16 >> 16) + ((I)odd >> 16));
}
static inline B join(const void* low, const void* high) {
  B y;
  std::memcpy(&y, low, 32);
  std::memcpy((uint8_t*)&y + 32, high, 32);
  return y;
}
static inline B load_bytes(const void* p) { return read<B>(p); }
static inline void store(uint8_t* p, B x) { std::memcpy(p, &x, sizeof x); }
static inline B bytes_of(I x) { return (B)x; }
static inline B either(B a, B b) { return a | b; }
static inline B flip(B x, uint8_t bits) { return x ^ bits; }
static inline B low_nibbles(B x) { return x & 15; }
static inline B high_nibbles(B x) { return x >> 4; }
static inline B shift_left_4(B x) { return x << 4; }
static inline B fork(const void* p, int first, int second, uint8_t mask) {
  B y = join(p, p);
  GEMELO_EACH(64) y[i] = (uint8_t)(y[i] >> (i < 32 ? first : second)) & mask;
  return y;
}
static inline B nibbles(const void* low, const void* high) {
  B y;
  const uint8_t *a = (const uint8_t*)low, *b = (const uint8_t*)high;
  GEMELO_EACH(16) {
    y[i] = a[i] & 15;
    y[i + 16] = a[i] >> 4;
    y[i + 32] = b[i] & 15;
    y[i + 48] = b[i] >> 4;
  }
  return y;
}
static inline B where(uint64_t bits, uint8_t value) {
  B y;
  GEMELO_EACH(64) y[i] = bits >> i & 1 ? value : 0;
  return y;
}
static inline B bits_4_and_5(B x, int up) { return (up < 0 ? x >> -up : x << up) & 0x30; }
static inline F load_uint8(const uint8_t* p) {
  F y;
  GEMELO_EACH(16) y[i] = p[i];
  return y;
}
static inline F load_int8(const int8_t* p) {
  F y;
  GEMELO_EACH(16) y[i] = p[i];
  return y;
}
template <int quarter>
static inline F widen(B x) {
  return load_uint8((const uint8_t*)&x + 16 * quarter);
}

#undef GEMELO_EACH

}  // namespace GEMELO_ISA
