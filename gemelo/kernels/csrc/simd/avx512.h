// Vectors of sixteen floats, sixteen integers or sixty-four bytes: AVX-512 with VNNI, VBMI and BF16
// (Ice Lake, Zen 4 and later).
//
// The four files of instructions here offer the same names; the kernels are written once over them
// and compiled once for each. F holds floats, I 32-bit integers, B bytes.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace GEMELO_ISA {

using F = __m512;
using I = __m512i;
using B = __m512i;

constexpr int kMicroTokens = 8;  // of a micro-tile of the panel GEMM
constexpr int kFloatRegisters = 2, kFloatTokens = 12;  // of the GEMM with plain floats

// ---- floats -------------------------------------------------------------------------------------

static inline F set(float x) { return _mm512_set1_ps(x); }
static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline F larger(F a, F b) { return _mm512_max_ps(a, b); }
static inline F smaller(F a, F b) { return _mm512_min_ps(a, b); }
static inline F magnitude(F x) { return _mm512_abs_ps(x); }
static inline float sum(F x) { return _mm512_reduce_add_ps(x); }
static inline float largest(F x) { return _mm512_reduce_max_ps(x); }

// Eight lanes of a, then eight of b.
static inline F pair(float a, float b) {
  return _mm512_mask_broadcastss_ps(_mm512_set1_ps(a), 0xFF00, _mm_set_ss(b));
}
// The same of two half-precision numbers.
static inline F pair_of_halves(const void* a, const void* b) {
  uint16_t x, y;
  std::memcpy(&x, a, 2);
  std::memcpy(&y, b, 2);
  return _mm512_cvtph_ps(_mm256_set_m128i(_mm_set1_epi16(y), _mm_set1_epi16(x)));
}
// Four lanes of each of four numbers.
static inline F fours(const float* p) {
  const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  return _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(_mm_loadu_ps(p)));
}
// The two kinds of sixteen-bit float, widened and rounded.
static inline F load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
static inline F load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline void store_bf16(uint16_t* p, F x) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
}
static inline void store_half(uint16_t* p, F x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline float widen_half(uint16_t h) { return _cvtsh_ss(h); }
static inline uint16_t narrow_half(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

// ---- integers -----------------------------------------------------------------------------------

static inline I zeros() { return _mm512_setzero_si512(); }
static inline I all(int32_t x) { return _mm512_set1_epi32(x); }
static inline I load(const int32_t* p) { return _mm512_loadu_si512(p); }
static inline void store(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
static inline F floats(I x) { return _mm512_cvtepi32_ps(x); }
static inline I nearest(F x) { return _mm512_cvtps_epi32(x); }
static inline I truncated(F x) { return _mm512_cvttps_epi32(x); }
// 2 to the power of every (whole) lane.
static inline F power_of_two(I n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
// Integers of at most eight bits, as sixteen bytes.
static inline void store_bytes(int8_t* p, I x) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x));
}

// ---- bytes --------------------------------------------------------------------------------------

// Every lane gains the sum of its four products, unsigned u times signed s.
static inline I dot(I sums, B u, B s) { return _mm512_dpbusd_epi32(sums, u, s); }
static inline B load_bytes(const void* p) { return _mm512_loadu_si512(p); }
static inline void store(uint8_t* p, B x) { _mm512_storeu_si512(p, x); }
static inline B join(const void* low, const void* high) {
  const __m256i a = _mm256_loadu_si256((const __m256i*)low);
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), _mm256_loadu_si256((const __m256i*)high), 1);
}
static inline B bytes_of(I x) { return x; }
static inline B either(B a, B b) { return _mm512_or_si512(a, b); }
static inline B flip(B a, uint8_t bits) {
  return _mm512_xor_si512(a, _mm512_set1_epi8((char)bits));
}
static inline B low_nibbles(B x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
static inline B high_nibbles(B x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
static inline B shift_left_4(B x) { return _mm512_slli_epi16(x, 4); }
// 32 bytes twice, each half shifted right by its own amount and masked.
static inline B fork(const void* p, int first, int second, uint8_t mask) {
  const __m512i x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p));
  const __m512i by =
      _mm512_inserti64x4(_mm512_set1_epi16((short)first), _mm256_set1_epi16((short)second), 1);
  return _mm512_and_si512(_mm512_srlv_epi16(x, by), _mm512_set1_epi8((char)mask));
}
// Low and high nibbles of 16 bytes, then those of 16 others.
static inline B nibbles(const void* low, const void* high) {
  const __m256i both =
      _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)low)),
                              _mm_loadu_si128((const __m128i*)high), 1);
  const __m512i x = _mm512_permutexvar_epi64(_mm512_set_epi64(3, 2, 3, 2, 1, 0, 1, 0),
                                             _mm512_castsi256_si512(both));
  const __m512i by = _mm512_set_epi64(0x0004000400040004, 0x0004000400040004, 0, 0,
                                      0x0004000400040004, 0x0004000400040004, 0, 0);
  return _mm512_and_si512(_mm512_srlv_epi16(x, by), _mm512_set1_epi8(15));
}
// `value` where the bit is set, else 0.
static inline B where(uint64_t bits, uint8_t value) {
  return _mm512_maskz_set1_epi8((__mmask64)bits, (char)value);
}
// Two bits of every byte, moved up (or down) to its fifth and sixth.
static inline B bits_4_and_5(B x, int up) {
  const B moved = up < 0 ? _mm512_srli_epi16(x, -up) : _mm512_slli_epi16(x, up);
  return _mm512_and_si512(moved, _mm512_set1_epi8(0x30));
}
// Sixteen unsigned bytes as floats.
static inline F load_uint8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
// The same of signed ones.
static inline F load_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
// Sixteen of the bytes as floats.
template <int quarter>
static inline F widen(B x) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(x, quarter)));
}

// 16 x 16 words: out[j][i] = in[i][j].
static inline void transpose(__m512i x[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xDD);
    y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; i++) {
    x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
    x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xDD);
    x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xDD);
  }
}

// Bytes `at` of sixteen rows, `count` words of each, as lines of one word a row.
static inline void interleave_lines(const uint8_t* const* from, int at, int count, uint8_t* out,
                                    uint32_t flipped) {
  __m512i x[16];
  const auto there = (__mmask16)((1 << count) - 1);
  for (int r = 0; r < 16; r++) x[r] = _mm512_maskz_loadu_epi32(there, from[r] + at);
  transpose(x);
  const __m512i flip = _mm512_set1_epi32((int)flipped);
  for (int i = 0; i < count; i++) _mm512_storeu_si512(out + 64 * i, _mm512_xor_si512(x[i], flip));
}

}  // namespace GEMELO_ISA
