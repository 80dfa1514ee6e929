// The names of avx512.h over NEON with the dot product (ARMv8.2: Cortex-A76, Neoverse N1,
// Apple M1 and later): every value is four registers. The mixed-sign dot product of ARMv8.6 is used
// where the compiler was told that it is there.
//
// Everything is loaded as bytes, because blocks of a mapped file start anywhere.

#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace GEMELO_ISA {

struct F {
  float32x4_t a, b, c, d;
};
struct I {
  int32x4_t a, b, c, d;
};
struct B {
  uint8x16_t a, b, c, d;
};

constexpr int kMicroTokens = 3;  // of a micro-tile of the panel GEMM
constexpr int kFloatRegisters = 1, kFloatTokens = 6;  // of the GEMM with plain floats

#define GEMELO_ONE(f, x) {f(x.a), f(x.b), f(x.c), f(x.d)}
#define GEMELO_TWO(f, x, y) {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)}

// ---- floats -------------------------------------------------------------------------------------

static inline F operator+(F x, F y) { return GEMELO_TWO(vaddq_f32, x, y); }
static inline F operator-(F x, F y) { return GEMELO_TWO(vsubq_f32, x, y); }
static inline F operator*(F x, F y) { return GEMELO_TWO(vmulq_f32, x, y); }
static inline F operator/(F x, F y) { return GEMELO_TWO(vdivq_f32, x, y); }
static inline F pair(float a, float b) {
  return {vdupq_n_f32(a), vdupq_n_f32(a), vdupq_n_f32(b), vdupq_n_f32(b)};
}
static inline F set(float x) { return pair(x, x); }
static inline float32x4_t four_floats(const void* p) {
  return vreinterpretq_f32_u8(vld1q_u8((const uint8_t*)p));
}
static inline F fours(const float* p) {
  return {vdupq_n_f32(p[0]), vdupq_n_f32(p[1]), vdupq_n_f32(p[2]), vdupq_n_f32(p[3])};
}
static inline F load(const float* p) {
  const uint8_t* bytes = (const uint8_t*)p;
  return {four_floats(bytes), four_floats(bytes + 16), four_floats(bytes + 32),
          four_floats(bytes + 48)};
}
static inline void store(float* p, F x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
  vst1q_f32(p + 8, x.c);
  vst1q_f32(p + 12, x.d);
}
static inline F fma(F x, F y, F z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
          vfmaq_f32(z.d, x.d, y.d)};
}
static inline F larger(F x, F y) { return GEMELO_TWO(vmaxq_f32, x, y); }
static inline F smaller(F x, F y) { return GEMELO_TWO(vminq_f32, x, y); }
static inline F magnitude(F x) { return GEMELO_ONE(vabsq_f32, x); }
static inline float sum(F x) {
  const float32x4_t y = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  const float32x2_t z = vadd_f32(vget_low_f32(y), vget_high_f32(y));
  return vget_lane_f32(z, 0) + vget_lane_f32(z, 1);
}
static inline float largest(F x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d)));
}

static inline float widen_half(uint16_t h) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}
static inline uint16_t narrow_half(float x) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
}
static inline F pair_of_halves(const void* a, const void* b) {
  uint16_t x, y;
  std::memcpy(&x, a, 2);
  std::memcpy(&y, b, 2);
  return pair(widen_half(x), widen_half(y));
}
// Four sixteen-bit numbers.
static inline uint16x4_t four_words(const void* p) {
  return vreinterpret_u16_u8(vld1_u8((const uint8_t*)p));
}
static inline float32x4_t four_halves(const uint8_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(four_words(p)));
}
static inline F load_half(const uint16_t* p) {
  const uint8_t* bytes = (const uint8_t*)p;
  return {four_halves(bytes), four_halves(bytes + 8), four_halves(bytes + 16),
          four_halves(bytes + 24)};
}
static inline void four_halves(uint8_t* p, float32x4_t x) {
  vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x)));
}
static inline void store_half(uint16_t* p, F x) {
  uint8_t* bytes = (uint8_t*)p;
  four_halves(bytes, x.a);
  four_halves(bytes + 8, x.b);
  four_halves(bytes + 16, x.c);
  four_halves(bytes + 24, x.d);
}
static inline float32x4_t four_bf16(const uint8_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(four_words(p), 16));
}
static inline F load_bf16(const uint16_t* p) {
  const uint8_t* bytes = (const uint8_t*)p;
  return {four_bf16(bytes), four_bf16(bytes + 8), four_bf16(bytes + 16), four_bf16(bytes + 24)};
}
// Round to nearest even; a NaN keeps a bit that says so.
static inline uint16x4_t narrow_bf16(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), up, vdupq_n_u32(0x7FC00000)), 16);
}
static inline void store_bf16(uint16_t* p, F x) {
  vst1_u16(p, narrow_bf16(x.a));
  vst1_u16(p + 4, narrow_bf16(x.b));
  vst1_u16(p + 8, narrow_bf16(x.c));
  vst1_u16(p + 12, narrow_bf16(x.d));
}

// ---- integers -----------------------------------------------------------------------------------

static inline I all(int32_t x) {
  return {vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)};
}
static inline I zeros() { return all(0); }
static inline I load(const int32_t* p) {
  return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
}
static inline void store(int32_t* p, I x) {
  vst1q_s32(p, x.a);
  vst1q_s32(p + 4, x.b);
  vst1q_s32(p + 8, x.c);
  vst1q_s32(p + 12, x.d);
}
static inline F floats(I x) { return GEMELO_ONE(vcvtq_f32_s32, x); }
// A NaN becomes 0 here and the least integer elsewhere; whoever calls has marked it by then.
static inline I nearest(F x) { return GEMELO_ONE(vcvtnq_s32_f32, x); }
static inline I truncated(F x) { return GEMELO_ONE(vcvtq_s32_f32, x); }
static inline float32x4_t power_of_two(int32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
static inline F power_of_two(I n) { return GEMELO_ONE(power_of_two, n); }
static inline void store_bytes(int8_t* p, I x) {
  const int16x8_t low = vcombine_s16(vqmovn_s32(x.a), vqmovn_s32(x.b));
  const int16x8_t high = vcombine_s16(vqmovn_s32(x.c), vqmovn_s32(x.d));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

// ---- bytes --------------------------------------------------------------------------------------

static inline int32x4_t dot(int32x4_t sums, uint8x16_t u, int8x16_t s) {
#ifdef __ARM_FEATURE_MATMUL_INT8
  return vusdotq_s32(sums, u, s);
#else
  // u = (u - 128) + 128: the first is a signed byte, the second takes 128 sums of s.
  const int8x16_t centred = vreinterpretq_s8_u8(veorq_u8(u, vdupq_n_u8(0x80)));
  const int32x4_t rest = vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(1), s);
  return vaddq_s32(vdotq_s32(sums, centred, s), vshlq_n_s32(rest, 7));
#endif
}
static inline I dot(I sums, B u, B s) {
  return {dot(sums.a, u.a, vreinterpretq_s8_u8(s.a)), dot(sums.b, u.b, vreinterpretq_s8_u8(s.b)),
          dot(sums.c, u.c, vreinterpretq_s8_u8(s.c)), dot(sums.d, u.d, vreinterpretq_s8_u8(s.d))};
}
static inline B join(const void* low, const void* high) {
  const uint8_t *x = (const uint8_t*)low, *y = (const uint8_t*)high;
  return {vld1q_u8(x), vld1q_u8(x + 16), vld1q_u8(y), vld1q_u8(y + 16)};
}
static inline B load_bytes(const void* p) { return join(p, (const uint8_t*)p + 32); }
static inline void store(uint8_t* p, B x) {
  vst1q_u8(p, x.a);
  vst1q_u8(p + 16, x.b);
  vst1q_u8(p + 32, x.c);
  vst1q_u8(p + 48, x.d);
}
static inline B bytes_of(I x) { return GEMELO_ONE(vreinterpretq_u8_s32, x); }
static inline B repeat(uint8_t bits) {
  const uint8x16_t x = vdupq_n_u8(bits);
  return {x, x, x, x};
}
static inline B either(B x, B y) { return GEMELO_TWO(vorrq_u8, x, y); }
static inline B flip(B x, uint8_t bits) { return GEMELO_TWO(veorq_u8, x, repeat(bits)); }
static inline uint8x16_t low_nibbles(uint8x16_t x) { return vandq_u8(x, vdupq_n_u8(15)); }
static inline uint8x16_t high_nibbles(uint8x16_t x) { return vshrq_n_u8(x, 4); }
static inline uint8x16_t shift_left_4(uint8x16_t x) { return vshlq_n_u8(x, 4); }
static inline B low_nibbles(B x) { return GEMELO_ONE(low_nibbles, x); }
static inline B high_nibbles(B x) { return GEMELO_ONE(high_nibbles, x); }
static inline B shift_left_4(B x) { return GEMELO_ONE(shift_left_4, x); }
static inline uint8x16_t shift_right(uint8x16_t x, int by, uint8_t mask) {
  return vandq_u8(vshlq_u8(x, vdupq_n_s8((int8_t)-by)), vdupq_n_u8(mask));
}
static inline B fork(const void* p, int first, int second, uint8_t mask) {
  const uint8x16_t x = vld1q_u8((const uint8_t*)p), y = vld1q_u8((const uint8_t*)p + 16);
  return {shift_right(x, first, mask), shift_right(y, first, mask), shift_right(x, second, mask),
          shift_right(y, second, mask)};
}
static inline B nibbles(const void* low, const void* high) {
  const uint8x16_t x = vld1q_u8((const uint8_t*)low), y = vld1q_u8((const uint8_t*)high);
  return {low_nibbles(x), high_nibbles(x), low_nibbles(y), high_nibbles(y)};
}
static inline uint8x16_t spread(uint64_t bits, uint8_t value) {
  const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  const uint8x16_t x = vcombine_u8(vdup_n_u8((uint8_t)bits), vdup_n_u8((uint8_t)(bits >> 8)));
  return vandq_u8(vtstq_u8(x, bit), vdupq_n_u8(value));
}
static inline B where(uint64_t bits, uint8_t value) {
  return {spread(bits, value), spread(bits >> 16, value), spread(bits >> 32, value),
          spread(bits >> 48, value)};
}
static inline B bits_4_and_5(B x, int up) {
  const int8x16_t by = vdupq_n_s8((int8_t)up);
  const uint8x16_t both = vdupq_n_u8(0x30);
  return {vandq_u8(vshlq_u8(x.a, by), both), vandq_u8(vshlq_u8(x.b, by), both),
          vandq_u8(vshlq_u8(x.c, by), both), vandq_u8(vshlq_u8(x.d, by), both)};
}
static inline F load_uint8(uint8x16_t q) {
  const uint16x8_t low = vmovl_u8(vget_low_u8(q)), high = vmovl_high_u8(q);
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low)),
          vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_high_u16(high))};
}
static inline F load_uint8(const uint8_t* p) { return load_uint8(vld1q_u8(p)); }
static inline F load_int8(const int8_t* p) {
  const int8x16_t q = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(q)), high = vmovl_high_s8(q);
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
          vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))};
}
template <int quarter>
static inline F widen(B x) {
  return load_uint8(quarter == 0 ? x.a : quarter == 1 ? x.b : quarter == 2 ? x.c : x.d);
}

#undef GEMELO_ONE
#undef GEMELO_TWO

}  // namespace GEMELO_ISA
