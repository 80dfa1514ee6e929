// Decoding GGUF's blocks, as the file has them: unsigned bytes, scales and minima of 64 or 256
// weights.
//
// Every format is w = scale * u - minimum with u an unsigned byte, and scale and minimum constant
// over 32 weights (16 in Q6_K). A super-block gives the bytes of 64 weights at a time (a "pair" of
// blocks of 32) and what to scale their partial sums by, lane by lane: lane i of a dot product has
// added weights 4 i to 4 i + 3. The layouts are drawn in docs/kernels.md; gemelo/kernels/formats.py
// is their definition in Python.
//
//   kZero      where every minimum is scale * kZero: the byte that stands for 0, else 0
//   kNumScales how many scales 32 weights have
//   kMinima    whether minima are free, as in the K formats with minima

#pragma once

#include <type_traits>

#include "gemm/formats.h"
#include "simd/unroll.h"

namespace GEMELO_ISA {

static inline float half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return widen_half(h);
}

struct Q8_0 {
  static constexpr int kWeights = 64, kBytes = 68, kPairs = 1, kNumScales = 1, kZero = 128;
  static constexpr bool kMinima = false;
  const uint8_t* p;

  B quants(int) const { return flip(join(p + 2, p + 36), 0x80); }
  F scales(int) const { return pair_of_halves(p, p + 34); }
  F minima(int) const { return set(0); }
  float scale(int sixteenth) const { return half_at(p + (sixteenth < 2 ? 0 : 34)); }
  float minimum(int sixteenth) const { return kZero * scale(sixteenth); }
};

struct Q4_0 {
  static constexpr int kWeights = 64, kBytes = 36, kPairs = 1, kNumScales = 1, kZero = 8;
  static constexpr bool kMinima = false;
  const uint8_t* p;

  B quants(int) const { return nibbles(p + 2, p + 20); }
  F scales(int) const { return pair_of_halves(p, p + 18); }
  F minima(int) const { return set(0); }
  float scale(int sixteenth) const { return half_at(p + (sixteenth < 2 ? 0 : 18)); }
  float minimum(int sixteenth) const { return kZero * scale(sixteenth); }
};

struct Q5_0 {
  static constexpr int kWeights = 64, kBytes = 44, kPairs = 1, kNumScales = 1, kZero = 16;
  static constexpr bool kMinima = false;
  const uint8_t* p;

  B quants(int) const {
    uint32_t low, high;
    std::memcpy(&low, p + 2, 4);
    std::memcpy(&high, p + 24, 4);
    return either(nibbles(p + 6, p + 28), where(low | (uint64_t)high << 32, 16));
  }
  F scales(int) const { return pair_of_halves(p, p + 22); }
  F minima(int) const { return set(0); }
  float scale(int sixteenth) const { return half_at(p + (sixteenth < 2 ? 0 : 22)); }
  float minimum(int sixteenth) const { return kZero * scale(sixteenth); }
};

using Rows = const uint8_t* const*;  // where each of some rows lies

// The eight scales and minima of six bits in twelve bytes, which Q4_K and Q5_K share.
struct SixBits {
  uint8_t scale[8], minimum[8];

  explicit SixBits(const uint8_t* p) {
    uint32_t words[3];
    std::memcpy(words, p + 4, 12);
    const uint32_t low = words[0] & 0x3F3F3F3F, least = words[1] & 0x3F3F3F3F;
    const uint32_t high = (words[2] & 0x0F0F0F0F) | (words[0] >> 2 & 0x30303030);
    const uint32_t most = (words[2] >> 4 & 0x0F0F0F0F) | (words[1] >> 2 & 0x30303030);
    std::memcpy(scale, &low, 4);
    std::memcpy(scale + 4, &high, 4);
    std::memcpy(minimum, &least, 4);
    std::memcpy(minimum + 4, &most, 4);
  }
};

// The same times d and dmin.
struct SixBitScales {
  float scale[8], minimum[8];

  explicit SixBitScales(const uint8_t* p) {
    const SixBits six(p);
    const float d = half_at(p), m = half_at(p + 2);
    for (int i = 0; i < 8; i++) scale[i] = d * six.scale[i];
    for (int i = 0; i < 8; i++) minimum[i] = m * six.minimum[i];
  }
};

struct Q4_K {
  static constexpr int kWeights = 256, kBytes = 144, kPairs = 4, kNumScales = 1, kZero = 0;
  static constexpr bool kMinima = true;
  const uint8_t* p;
  SixBitScales six;

  explicit Q4_K(const uint8_t* p) : p(p), six(p) {}
  B quants(int i) const { return fork(p + 16 + 32 * i, 0, 4, 15); }
  F scales(int i) const { return pair(six.scale[2 * i], six.scale[2 * i + 1]); }
  F minima(int i) const { return pair(six.minimum[2 * i], six.minimum[2 * i + 1]); }
  float scale(int sixteenth) const { return six.scale[sixteenth / 2]; }
  float minimum(int sixteenth) const { return six.minimum[sixteenth / 2]; }
};

struct Q5_K {
  static constexpr int kWeights = 256, kBytes = 176, kPairs = 4, kNumScales = 1, kZero = 0;
  static constexpr bool kMinima = true;
  const uint8_t* p;
  SixBitScales six;

  explicit Q5_K(const uint8_t* p) : p(p), six(p) {}
  B quants(int i) const {
    const B fifth = shift_left_4(fork(p + 16, 2 * i, 2 * i + 1, 1));
    return either(fork(p + 48 + 32 * i, 0, 4, 15), fifth);
  }
  F scales(int i) const { return pair(six.scale[2 * i], six.scale[2 * i + 1]); }
  F minima(int i) const { return pair(six.minimum[2 * i], six.minimum[2 * i + 1]); }
  float scale(int sixteenth) const { return six.scale[sixteenth / 2]; }
  float minimum(int sixteenth) const { return six.minimum[sixteenth / 2]; }
};

struct Q6_K {
  static constexpr int kWeights = 256, kBytes = 210, kPairs = 4, kNumScales = 2, kZero = 32;
  static constexpr bool kMinima = false;
  const uint8_t* p;
  float scale_of[16];

  explicit Q6_K(const uint8_t* p) : p(p) {
    const float d = half_at(p + 208);
    for (int i = 0; i < 16; i++) scale_of[i] = d * (int8_t)p[192 + i];
  }
  B quants(int i) const {
    const B four = load_bytes(p + 64 * (i / 2));
    const B two = shift_left_4(fork(p + 128 + 32 * (i / 2), i % 2 * 4, i % 2 * 4 + 2, 3));
    return either(i % 2 ? high_nibbles(four) : low_nibbles(four), two);
  }
  F scales(int i) const { return fours(scale_of + 4 * i); }
  F minima(int) const { return set(0); }
  float scale(int sixteenth) const { return scale_of[sixteenth]; }
  float minimum(int sixteenth) const { return kZero * scale_of[sixteenth]; }
};

// Plain floats: sixteen weights at a time.
struct F32 {
  static constexpr int kBytes = 4;
  static F at(const uint8_t* p) { return load((const float*)p); }
};
struct F16 {
  static constexpr int kBytes = 2;
  static F at(const uint8_t* p) { return load_half((const uint16_t*)p); }
};
struct BF16 {
  static constexpr int kBytes = 2;
  static F at(const uint8_t* p) { return load_bf16((const uint16_t*)p); }
};

// body(std::type_identity<Q4_0>{}) and the like: the code for a format that is only known when it
// runs.
template <class Body>
static inline void with_blocks(gemelo::Format format, const Body& body) {
  switch (format) {
    case gemelo::kQ4_0: return body(std::type_identity<Q4_0>{});
    case gemelo::kQ5_0: return body(std::type_identity<Q5_0>{});
    case gemelo::kQ8_0: return body(std::type_identity<Q8_0>{});
    case gemelo::kQ4_K: return body(std::type_identity<Q4_K>{});
    case gemelo::kQ5_K: return body(std::type_identity<Q5_K>{});
    case gemelo::kQ6_K: return body(std::type_identity<Q6_K>{});
    default: return;
  }
}
template <class Body>
static inline void with_floats(gemelo::Format format, const Body& body) {
  switch (format) {
    case gemelo::kF32: return body(std::type_identity<F32>{});
    case gemelo::kF16: return body(std::type_identity<F16>{});
    case gemelo::kBF16: return body(std::type_identity<BF16>{});
    default: return;
  }
}

// A super-block as 64 * kPairs floats, to the bit what the format defines.
template <class Q>
static inline void expand(const Q& block, float* out) {
  const auto put = [&](int sixteenth, F u) GEMELO_INLINE {
    const F scale = set(block.scale(sixteenth));
    if constexpr (Q::kMinima) u = u * scale - set(block.minimum(sixteenth));
    else u = (u - set(Q::kZero)) * scale;
    store(out + 16 * sixteenth, u);
  };
#pragma GCC unroll 4
  for (int i = 0; i < Q::kPairs; i++) {
    const B u = block.quants(i);
    put(4 * i, widen<0>(u));
    put(4 * i + 1, widen<1>(u));
    put(4 * i + 2, widen<2>(u));
    put(4 * i + 3, widen<3>(u));
  }
}

// The last super-block of a row may be half a pair: blocks of 32 in rows of an odd number of them.
template <class Q>
struct Tail {
  uint8_t bytes[Q::kBytes] = {};
  Tail(const uint8_t* p, int weights) {
    std::memcpy(bytes, p, (size_t)Q::kBytes * weights / Q::kWeights);
  }
};

}  // namespace GEMELO_ISA
