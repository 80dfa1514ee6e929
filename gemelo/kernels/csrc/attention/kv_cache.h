// One head of a KV cache, whatever its numbers are stored as: float, bfloat16 (uint16_t here), or
// signed bytes (int8_t) with a half-precision scale for every slot.
//
// Numbers are read sixteen at a time and bytes as they are: whoever reads multiplies a key's score
// or a value's weight by the slot's scale, so nothing is expanded to memory. What is written is
// rounded as gemelo/engine/kv.py rounds it, to the bit.

#pragma once

#include <type_traits>

#include "runtime/kernels.h"

namespace GEMELO_ISA {

using gemelo::KvCache;
using gemelo::KvTensor;

static inline F load_numbers(const float* p) { return load(p); }
static inline F load_numbers(const uint16_t* p) { return load_bf16(p); }
static inline F load_numbers(const int8_t* p) { return load_int8(p); }

static inline void round_head(const float* x, int64_t d, float* out, uint16_t*) {
  std::memcpy(out, x, d * sizeof(float));
}
static inline void round_head(const float* x, int64_t d, uint16_t* out, uint16_t*) {
  for (int64_t i = 0; i < d; i += 16) store_bf16(out + i, load(x + i));
}
// To signed bytes, 127 of them the largest magnitude.
static inline void round_head(const float* x, int64_t d, int8_t* out, uint16_t* scale) {
  F top = set(0), odd = set(0);  // odd becomes NaN with any number that is not finite
  for (int64_t i = 0; i < d; i += 16) {
    top = larger(top, magnitude(load(x + i)));
    odd = fma(load(x + i), set(0), odd);
  }
  const float exact = largest(top) / 127.0f;
  *scale = narrow_half((exact < 1e-7f ? 1e-7f : exact) + sum(odd));
  const F step = set(widen_half(*scale));
  for (int64_t i = 0; i < d; i += 16)
    store_bytes(out + i, nearest(smaller(larger(load(x + i) / step, set(-127)), set(127))));
}

// Keys or values of one head.
template <class Number>
struct Slots {
  static constexpr bool kScaled = std::is_same_v<Number, int8_t>;
  Number* numbers;
  uint16_t* scales;
  int64_t stride, heads;

  Slots(const KvCache& cache, const KvTensor& kept, int64_t head)
      : numbers((Number*)kept.numbers + head * cache.d),
        scales(kScaled ? kept.scales + head : nullptr),
        stride(cache.heads * cache.d),
        heads(cache.heads) {}

  const Number* at(int64_t slot) const { return numbers + slot * stride; }
  float scale(int64_t slot) const {
    if constexpr (kScaled) return widen_half(scales[slot * heads]);
    return 1;
  }
  void put(int64_t slot, const float* x, int64_t d) const {
    round_head(x, d, numbers + slot * stride, kScaled ? scales + slot * heads : nullptr);
  }
};

// body(float{}) and the like: the code for what a cache keeps, which is only known when it runs.
template <class Body>
static inline void with_numbers(const KvCache& cache, const Body& body) {
  switch (cache.format) {
    case gemelo::CacheFormat::kF32: return body(float{});
    case gemelo::CacheFormat::kBF16: return body(uint16_t{});
    case gemelo::CacheFormat::kInt8: return body(int8_t{});
  }
}

}  // namespace GEMELO_ISA
