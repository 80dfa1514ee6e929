// Activations quantised to int8, with a scale for every 32 (as GGUF's Q8_0): of few tokens anew for
// each product by every thread that needs them (cheaper than a barrier), of many once.
//
// A NaN among 32 numbers makes their scale NaN, and an infinity makes it infinite, so that a broken
// weight is seen in the result instead of being rounded away.

#pragma once

#include "gemm/formats.h"

namespace GEMELO_ISA {

using gemelo::Activations;

// 64 activations: what a pair of weight blocks is multiplied with.
struct Pair {
  int8_t q[64];
  float scale[16];  // eight lanes of the first 32's scale, then eight of the second's
  union {
    int32_t bias[16];  // -kZero times the sum of every four
    float sums[16];    // or, for formats with minima, -scale times that sum
  };
};

static inline int64_t pairs_of(int64_t columns) { return (columns + 63) / 64; }

static inline F load16(const Activations& x, int64_t token, int64_t at) {
  const int64_t i = token * x.stride + at;
  return x.bf16 ? load_bf16((const uint16_t*)x.data + i) : load((const float*)x.data + i);
}
static inline void store16(const Activations& y, int64_t token, int64_t at, F v) {
  const int64_t i = token * y.stride + at;
  if (y.bf16) store_bf16((uint16_t*)y.data + i, v);
  else store((float*)y.data + i, v);
}
static inline void put(const Activations& y, int64_t token, int64_t at, float v) {
  const int64_t i = token * y.stride + at;
  if (!y.bf16) {
    ((float*)y.data)[i] = v;
  } else {
    uint16_t lanes[16];
    store_bf16(lanes, set(v));
    ((uint16_t*)y.data)[i] = lanes[0];
  }
}

static inline float get(const Activations& x, int64_t token, int64_t at) {
  const int64_t i = token * x.stride + at;
  if (!x.bf16) return ((const float*)x.data)[i];
  const uint32_t bits = (uint32_t)((const uint16_t*)x.data)[i] << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
// A token's activations as floats, filled up with zeros to sixteens.
static inline void copy_row(const Activations& x, int64_t token, int64_t columns, float* out) {
  int64_t at = 0;
  for (; at + 16 <= columns; at += 16) store(out + at, load16(x, token, at));
  if (at == columns) return;
  for (int64_t i = at; i < at + 16; i++) out[i] = i < columns ? get(x, token, i) : 0.0f;
}

// 32 numbers to bytes; returns their scale.
static inline float to_bytes(F a, F b, int8_t* q) {
  const float top = largest(larger(magnitude(a), magnitude(b)));
  const float odd = sum(fma(a, set(0), b * set(0)));  // NaN if anything is NaN or infinite
  const F inverse = set(top > 0 ? 127.0f / top : 0.0f);
  store_bytes(q, nearest(a * inverse));
  store_bytes(q + 16, nearest(b * inverse));
  return top / 127.0f + odd;
}

// One token's activations (columns, a multiple of 32) as pairs; an odd last block is filled up with
// zeros.
static inline void quantise(const Activations& x, int64_t token, int64_t columns, int zero,
                            bool minima, Pair* out) {
  const B ones = where(~uint64_t{0}, 1);
  for (int64_t at = 0; at < columns; at += 64, out++) {
    const bool whole = at + 64 <= columns;
    const F none = set(0);
    const float first = to_bytes(load16(x, token, at), load16(x, token, at + 16), out->q);
    const float second =
        whole ? to_bytes(load16(x, token, at + 32), load16(x, token, at + 48), out->q + 32)
              : to_bytes(none, none, out->q + 32);
    const F scale = pair(first, second);
    store(out->scale, scale);
    const I sums = dot(zeros(), ones, load_bytes(out->q));
    if (minima) {
      store(out->sums, scale * floats(sums) * set(-1));
    } else {
      int32_t lanes[16];
      store(lanes, sums);
      for (int i = 0; i < 16; i++) out->bias[i] = -zero * lanes[i];
    }
  }
}

}  // namespace GEMELO_ISA
