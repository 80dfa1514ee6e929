// Few tokens: every row of weights is read once and multiplied with each token's bytes.
//
// What a (row, token) pair adds up, and in which order, does not depend on how many rows, tokens or
// threads there are. So the scores of one token alone and of the same token among sixteen are equal
// to the bit, which speculative decoding relies on.

#pragma once

#include "activations.h"
#include "blocks.h"
#include "scratch.h"
#include "unroll.h"

namespace GEMELO_ISA {

using gemelo::Matrix;

// Bytes that rows lying together are fetched ahead of their use, into the second cache; rows apart
// are fetched whole, some tiles ahead, and nothing between them.
constexpr int64_t kAhead = 2048, kTilesAhead = 4;

static inline void fetch(const uint8_t* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 2);
}

// y[t][r] for R rows and T tokens. `pairs` holds the tokens, `span` pairs apart.
template <class Q, int R, int T>
static inline void dot_tile(Rows rows, int64_t ahead, int64_t columns, const Pair* pairs,
                            int64_t span, float (*y)[R]) {
  F sums[R][T];
  each<R>([&](auto r) { each<T>([&](auto t) { sums[r][t] = set(0); }); });
  const auto run = [&](auto r, const Q& w, const Pair* x) GEMELO_INLINE {
    each<Q::kPairs>([&](auto i) GEMELO_INLINE {
      const B u = w.quants(i);
      const F level = w.levels(i);
      each<T>([&](auto t) GEMELO_INLINE {
        const Pair& p = x[t * span + i];
        const I start = Q::kMinima ? zeros() : load(p.bias);
        sums[r][t] = fma(floats(dot(start, u, load_bytes(p.q))), load(p.scale) * level, sums[r][t]);
        if (Q::kMinima) sums[r][t] = fma(load(p.sums), w.offsets(i), sums[r][t]);
      });
    });
  };
  const int64_t whole = columns / Q::kWeights;
  for (int64_t i = 0; i < whole; i++) {
    each<R>([&](auto r) GEMELO_INLINE {
      const uint8_t* p = rows[r] + i * Q::kBytes;
      fetch(p + ahead, Q::kBytes);
      run(r, Q{p}, pairs + i * Q::kPairs);
    });
  }
  if (const int rest = (int)(columns % Q::kWeights)) {
    each<R>([&](auto r) GEMELO_INLINE {
      const Tail<Q> tail(rows[r] + whole * Q::kBytes, rest);
      run(r, Q{tail.bytes}, pairs + whole * Q::kPairs);
    });
  }
  each<R>([&](auto r) { each<T>([&](auto t) { y[t][r] = sum(sums[r][t]); }); });
}

// The same over plain floats, with the activations as they are.
template <class W, int R, int T>
static inline void float_tile(Rows rows, int64_t ahead, int64_t columns, const float* x,
                              int64_t span, float (*y)[R]) {
  F sums[R][T];
  each<R>([&](auto r) { each<T>([&](auto t) { sums[r][t] = set(0); }); });
  const auto add = [&](auto r, F w, int64_t at) GEMELO_INLINE {
    each<T>([&](auto t)
                GEMELO_INLINE { sums[r][t] = fma(w, load(x + t * span + at), sums[r][t]); });
  };
  const int64_t whole = columns / 16 * 16;
  for (int64_t at = 0; at < whole; at += 16) {
    each<R>([&](auto r) GEMELO_INLINE {
      const uint8_t* p = rows[r] + at * W::kBytes;
      __builtin_prefetch(p + ahead, 0, 2);
      add(r, W::at(p), at);
    });
  }
  if (const int rest = (int)(columns - whole)) {
    each<R>([&](auto r) GEMELO_INLINE {
      alignas(64) uint8_t bytes[64] = {};
      std::memcpy(bytes, rows[r] + whole * W::kBytes, (size_t)rest * W::kBytes);
      add(r, W::at(bytes), whole);
    });
  }
  each<R>([&](auto r) { each<T>([&](auto t) { y[t][r] = sum(sums[r][t]); }); });
}

// Rows [begin, end) for all tokens, by tiles of R x T of the one kind or the other.
template <int R, int T, class Tile>
static inline void tiles(const Matrix& w, int64_t row_bytes, int64_t begin, int64_t end,
                         const Activations& y, int64_t token, const Tile& tile) {
  const bool apart =
      w.index || w.stride > row_bytes;  // chosen rows, or rows of which a part is used
  for (int64_t r = begin; r < end; r += R) {
    const uint8_t* rows[R];
    for (int i = 0; i < R; i++) rows[i] = w.row(r + i < end ? r + i : end - 1);
    if (apart)
      for (int64_t i = r + kTilesAhead * R; i < r + (kTilesAhead + 1) * R && i < end; i++)
        fetch(w.row(i), row_bytes);
    float out[T][R];
    tile(rows, apart ? 0 : kAhead, out);
    for (int t = 0; t < T; t++)
      for (int i = 0; i < R && r + i < end; i++) put(y, token + t, r + i, out[t][i]);
  }
}

template <class Q>
static void dot_rows(const Matrix& w, int64_t begin, int64_t end, const Pair* x, int64_t tokens,
                     const Activations& y) {
  const int64_t span = (w.columns + 63) / 64, bytes = w.columns * Q::kBytes / Q::kWeights;
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    tiles<2, 4>(w, bytes, begin, end, y, t, [&](Rows rows, int64_t ahead, float (*out)[2]) {
      dot_tile<Q, 2, 4>(rows, ahead, w.columns, x + t * span, span, out);
    });
  for (; t + 2 <= tokens; t += 2)
    tiles<2, 2>(w, bytes, begin, end, y, t, [&](Rows rows, int64_t ahead, float (*out)[2]) {
      dot_tile<Q, 2, 2>(rows, ahead, w.columns, x + t * span, span, out);
    });
  if (t < tokens)
    tiles<1, 1>(w, bytes, begin, end, y, t, [&](Rows rows, int64_t ahead, float (*out)[1]) {
      dot_tile<Q, 1, 1>(rows, ahead, w.columns, x + t * span, span, out);
    });
}

template <class W>
static void float_rows(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t tokens,
                       const Activations& y) {
  const int64_t span = (w.columns + 15) / 16 * 16, bytes = w.columns * W::kBytes;
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    tiles<2, 4>(w, bytes, begin, end, y, t, [&](Rows rows, int64_t ahead, float (*out)[2]) {
      float_tile<W, 2, 4>(rows, ahead, w.columns, x + t * span, span, out);
    });
  for (; t < tokens; t++)
    tiles<1, 1>(w, bytes, begin, end, y, t, [&](Rows rows, int64_t ahead, float (*out)[1]) {
      float_tile<W, 1, 1>(rows, ahead, w.columns, x + t * span, span, out);
    });
}

}  // namespace GEMELO_ISA
