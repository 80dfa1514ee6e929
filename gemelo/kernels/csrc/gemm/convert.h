// Converting weights: blocks to floats, and floats to blocks.
//
// To the bit what gemelo/kernels/quants.py defines: each multiplication, addition and subtraction
// rounds by itself. A block is written as llama.cpp's quantiser writes it; whoever calls learns
// whether every number had a place there.

#pragma once

#include <atomic>
#include <cmath>
#include <cstring>

#include "gemm/blocks.h"
#include "runtime/pool.h"

namespace GEMELO_ISA {

constexpr int64_t kSliceColumns = 4096;  // of a row, that are converted at once: whole blocks
constexpr int64_t kAlone = 1 << 15;      // numbers that are not worth waking other threads

// body(row, first column, columns) for slices of a matrix, by all threads.
template <class Body>
static void by_slices(int64_t rows, int64_t columns, const Body& body) {
  const int64_t slices = (columns + kSliceColumns - 1) / kSliceColumns;
  const auto some = [&](gemelo::Worker& worker) {
    int64_t begin, end;
    worker.share(rows * slices, 1, begin, end);
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i % slices * kSliceColumns, rest = columns - first;
      body(i / slices, first, rest < kSliceColumns ? rest : kSliceColumns);
    }
  };
  if (rows * columns > kAlone)
    return gemelo::parallel([&](gemelo::Worker& worker) { some(worker); });
  gemelo::Worker alone{gemelo::pool(), 0, 1};
  some(alone);
}

// ---- blocks to floats ---------------------------------------------------------------------------

template <class Q>
static void unpack_blocks(const uint8_t* p, int64_t columns, float* out) {
  for (; columns >= Q::kWeights; columns -= Q::kWeights, p += Q::kBytes, out += Q::kWeights)
    expand(Q{p}, out);
  if (!columns) return;
  float values[Q::kWeights];
  expand(Q{Tail<Q>(p, (int)columns).bytes}, values);
  std::memcpy(out, values, columns * sizeof(float));
}

template <class W>
static void unpack_floats(const uint8_t* p, int64_t columns, float* out) {
  for (; columns >= 16; columns -= 16, p += 16 * W::kBytes, out += 16) store(out, W::at(p));
  if (!columns) return;
  alignas(64) uint8_t rest[64] = {};
  float values[16];
  std::memcpy(rest, p, columns * W::kBytes);
  store(values, W::at(rest));
  std::memcpy(out, values, columns * sizeof(float));
}

// w as floats, out (rows, columns).
static void unpack(const gemelo::Matrix& w, float* out) {
  const auto by_rows = [&](auto unpack_slice, int64_t weights, int64_t bytes) {
    by_slices(w.rows, w.columns, [&](int64_t row, int64_t first, int64_t columns) {
      unpack_slice(w.row(row) + first / weights * bytes, columns, out + row * w.columns + first);
    });
  };
  with_blocks(w.format, [&]<class Q>(std::type_identity<Q>) {
    by_rows(unpack_blocks<Q>, Q::kWeights, Q::kBytes);
  });
  with_floats(w.format, [&]<class W>(std::type_identity<W>) {
    by_rows(unpack_floats<W>, 1, W::kBytes);
  });
}

// ---- floats to blocks ---------------------------------------------------------------------------

// A block's scale, in half precision; whether that is finite.
static inline bool put_scale(float scale, uint8_t* out) {
  const uint16_t half = narrow_half(scale);
  std::memcpy(out, &half, sizeof half);
  return (half & 0x7C00) != 0x7C00;
}

// 1 / scale, and 0 where that is infinite: an empty block, or one below the normal numbers.
static inline float inverse_of(float scale) {
  const float inverse = 1.0f / scale;
  return std::isinf(inverse) ? 0.0f : inverse;
}

// Whether 32 numbers are finite.
static inline bool sound(F a, F b) { return sum(a * set(0) + b * set(0)) == 0; }

// C's roundf of numbers below 2^22: halves away from zero.
static inline F away_from_zero(F x) {
  const F whole = floats(truncated(x));
  return whole + floats(truncated((x - whole) + (x - whole)));
}

// Each writes 32 numbers as a block; whether they have a place there.
struct ToQ8_0 {
  static constexpr int kBytes = 34;
  static bool put(const float* x, uint8_t* out) {
    const F a = load(x), b = load(x + 16);
    const float scale = largest(larger(magnitude(a), magnitude(b))) / 127.0f;
    const F inverse = set(inverse_of(scale));
    store_bytes((int8_t*)out + 2, nearest(away_from_zero(a * inverse)));
    store_bytes((int8_t*)out + 18, nearest(away_from_zero(b * inverse)));
    return sound(a, b) & put_scale(scale, out);
  }
};

struct ToQ4_0 {
  static constexpr int kBytes = 18;
  static bool put(const float* x, uint8_t* out) {
    const F a = load(x), b = load(x + 16), minus = set(-1);
    const float high = largest(larger(a, b)), low = -largest(larger(a * minus, b * minus));
    float peak = high > -low ? high : low;  // the value of largest magnitude, with its sign
    if (high == -low)                       // then the earlier one in the block counts
      for (int i = 31; i >= 0; i--) peak = std::fabs(x[i]) == high ? x[i] : peak;
    const float scale = peak / -8.0f;
    const F inverse = set(inverse_of(scale));
    const auto level = [&](F v) {
      return nearest(smaller(floats(truncated(v * inverse + set(8.5f))), set(15)));
    };
    int8_t levels[32];
    store_bytes(levels, level(a));
    store_bytes(levels + 16, level(b));
    for (int i = 0; i < 16; i++) out[2 + i] = (uint8_t)(levels[i] | levels[16 + i] << 4);
    return sound(a, b) & put_scale(scale, out);
  }
};

template <class To>
static bool pack_blocks(const float* x, int64_t columns, uint8_t* out) {
  bool all = true;
  for (int64_t at = 0; at < columns; at += 32, out += To::kBytes) all &= To::put(x + at, out);
  return all;
}

// Plain floats are rounded to the nearest, ties to even; what is not finite stays so.
static bool pack_f32(const float* x, int64_t columns, uint8_t* out) {
  std::memcpy(out, x, columns * sizeof(float));
  return true;
}

static bool pack_f16(const float* x, int64_t columns, uint8_t* out) {
  int64_t at = 0;
  for (; at + 16 <= columns; at += 16) store_half((uint16_t*)out + at, load(x + at));
  for (; at < columns; at++) {
    const uint16_t half = narrow_half(x[at]);
    std::memcpy(out + 2 * at, &half, sizeof half);
  }
  return true;
}

// By integers: AVX-512's own instruction takes subnormal numbers for zero.
static bool pack_bf16(const float* x, int64_t columns, uint8_t* out) {
  for (int64_t at = 0; at < columns; at++) {
    uint32_t bits;
    std::memcpy(&bits, x + at, sizeof bits);
    const auto rounded = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    const uint16_t half = (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded;
    std::memcpy(out + 2 * at, &half, sizeof half);
  }
  return true;
}

// out (rows, bytes of a row) = x (rows, columns); whether all numbers have a place there.
static bool pack_weights(const float* x, int64_t rows, int64_t columns, gemelo::Format format,
                         uint8_t* out) {
  std::atomic<bool> all{true};
  const auto by_rows = [&](auto pack_slice, int64_t block, int64_t block_bytes) {
    by_slices(rows, columns, [&](int64_t row, int64_t first, int64_t count) {
      const int64_t at = row * columns + first;
      if (!pack_slice(x + at, count, out + at / block * block_bytes)) all = false;
    });
  };
  switch (format) {
    case gemelo::kQ8_0: by_rows(pack_blocks<ToQ8_0>, 32, ToQ8_0::kBytes); break;
    case gemelo::kQ4_0: by_rows(pack_blocks<ToQ4_0>, 32, ToQ4_0::kBytes); break;
    case gemelo::kF32: by_rows(pack_f32, 1, 4); break;
    case gemelo::kF16: by_rows(pack_f16, 1, 2); break;
    case gemelo::kBF16: by_rows(pack_bf16, 1, 2); break;
    default: return false;
  }
  return all;
}

}  // namespace GEMELO_ISA
