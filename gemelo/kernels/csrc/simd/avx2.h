// The names of avx512.h over AVX2 with FMA and F16C (Haswell, Zen and later): every value is
// two registers. The dot product uses AVX-VNNI where the compiler was told that it is there.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace GEMELO_ISA {

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
struct B {
  __m256i a, b;
};

constexpr int kMicroTokens = 3;  // of a micro-tile of the panel GEMM
constexpr int kFloatRegisters = 1, kFloatTokens = 6;  // of the GEMM with plain floats

// ---- floats -------------------------------------------------------------------------------------

static inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
static inline F fma(F x, F y, F z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline F larger(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F smaller(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F magnitude(F x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline float sum(F x) {
  const __m256 y = _mm256_add_ps(x.a, x.b);
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
static inline float largest(F x) {
  const __m256 y = _mm256_max_ps(x.a, x.b);
  __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_max_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
static inline F pair(float a, float b) { return {_mm256_set1_ps(a), _mm256_set1_ps(b)}; }
static inline float widen_half(uint16_t h) { return _cvtsh_ss(h); }
static inline uint16_t narrow_half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
static inline F pair_of_halves(const void* a, const void* b) {
  uint16_t x, y;
  std::memcpy(&x, a, 2);
  std::memcpy(&y, b, 2);
  return pair(widen_half(x), widen_half(y));
}
static inline F fours(const float* p) {
  const __m256i low = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
  const __m256i high = _mm256_set_epi32(3, 3, 3, 3, 2, 2, 2, 2);
  const __m256 x = _mm256_castps128_ps256(_mm_loadu_ps(p));
  return {_mm256_permutevar8x32_ps(x, low), _mm256_permutevar8x32_ps(x, high)};
}
static inline F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline void store_half(uint16_t* p, F x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256 widen_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline F load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
// Round to nearest even; a NaN keeps a bit that says so.
static inline __m128i narrow_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7FC00000), _mm256_castps_si256(nan));
  up = _mm256_srli_epi32(up, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1));
}
static inline void store_bf16(uint16_t* p, F x) {
  _mm_storeu_si128((__m128i*)p, narrow_bf16(x.a));
  _mm_storeu_si128((__m128i*)(p + 8), narrow_bf16(x.b));
}

// ---- integers -----------------------------------------------------------------------------------

static inline I zeros() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline I all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I load(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
static inline void store(int32_t* p, I x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
static inline F floats(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline I nearest(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline I truncated(F x) { return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)}; }
static inline F power_of_two(I n) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
}
static inline void store_bytes(int8_t* p, I x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
  const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(low, high));
}

// ---- bytes --------------------------------------------------------------------------------------

static inline __m256i dot(__m256i sums, __m256i u, __m256i s) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(sums, u, s);
#else
  // Sixteen-bit products of bytes up to 255 could overflow in pairs: even and odd bytes apart.
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
#endif
}
static inline I dot(I sums, B u, B s) { return {dot(sums.a, u.a, s.a), dot(sums.b, u.b, s.b)}; }
static inline B join(const void* low, const void* high) {
  return {_mm256_loadu_si256((const __m256i*)low), _mm256_loadu_si256((const __m256i*)high)};
}
static inline B load_bytes(const void* p) { return join(p, (const uint8_t*)p + 32); }
static inline void store(uint8_t* p, B x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)(p + 32), x.b);
}
static inline B bytes_of(I x) { return {x.a, x.b}; }
static inline B either(B x, B y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
static inline B mask(B x, uint8_t bits) {
  const __m256i m = _mm256_set1_epi8((char)bits);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
static inline B flip(B x, uint8_t bits) {
  const __m256i m = _mm256_set1_epi8((char)bits);
  return {_mm256_xor_si256(x.a, m), _mm256_xor_si256(x.b, m)};
}
static inline B low_nibbles(B x) { return mask(x, 15); }
static inline B high_nibbles(B x) {
  return mask(B{_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}, 15);
}
static inline B shift_left_4(B x) { return {_mm256_slli_epi16(x.a, 4), _mm256_slli_epi16(x.b, 4)}; }
static inline B fork(const void* p, int first, int second, uint8_t bits) {
  const __m256i x = _mm256_loadu_si256((const __m256i*)p);
  return mask(B{_mm256_srl_epi16(x, _mm_cvtsi32_si128(first)),
                _mm256_srl_epi16(x, _mm_cvtsi32_si128(second))},
              bits);
}
static inline __m256i nibbles_of(const void* p) {
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(x), _mm_srli_epi16(x, 4), 1);
}
static inline B nibbles(const void* low, const void* high) {
  return mask(B{nibbles_of(low), nibbles_of(high)}, 15);
}
static inline __m256i spread(uint32_t bits, uint8_t value) {
  const __m256i byte_of =
      _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
  const __m256i x = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), byte_of);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(x, bit), bit);
  return _mm256_and_si256(set, _mm256_set1_epi8((char)value));
}
static inline B where(uint64_t bits, uint8_t value) {
  return {spread((uint32_t)bits, value), spread((uint32_t)(bits >> 32), value)};
}
static inline B bits_4_and_5(B x, int up) {
  const auto moved = [up](__m256i x) {
    return up < 0 ? _mm256_srli_epi16(x, -up) : _mm256_slli_epi16(x, up);
  };
  return mask(B{moved(x.a), moved(x.b)}, 0x30);
}
static inline __m256 eight_bytes(__m128i x) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)); }
static inline F load_uint8(const uint8_t* p) {
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return {eight_bytes(x), eight_bytes(_mm_srli_si128(x, 8))};
}
static inline F load_int8(const int8_t* p) {
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
template <int quarter>
static inline F widen(B x) {
  const __m256i half = quarter < 2 ? x.a : x.b;
  const __m128i q = quarter % 2 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half);
  return {eight_bytes(q), eight_bytes(_mm_srli_si128(q, 8))};
}

}  // namespace GEMELO_ISA
