// GEMV of exact tokens over rows as the file has them: every row of weights is read once and
// multiplied with each token's bytes.
//
// What a (row, token) pair adds up, and in which order, does not depend on how many rows, tokens or
// threads there are. So the scores of one token alone and of the same token among sixteen are equal
// to the bit, which speculative decoding relies on, and whoever shares a step with others.

#pragma once

#include <algorithm>

#include "gemm/activations.h"
#include "gemm/blocks.h"
#include "runtime/scratch.h"
#include "simd/prefetch.h"
#include "simd/unroll.h"

namespace GEMELO_ISA {

using gemelo::Matrix;

constexpr int64_t kMicroTilesAhead = 4;            // whose rows are fetched, where they lie apart
constexpr int kChains = kMicroTokens > 4 ? 4 : 2;  // sums of a row of floats, as registers allow
constexpr int kTokensAtOnce = 4;                   // of a micro-tile
constexpr int64_t kBandBytes = 1 << 17;            // of rows that stay near for all tokens

// y[t][r] for R rows and T tokens. `pairs` holds the tokens, `span` pairs apart. `later` are rows
// to fetch meanwhile, where those behind one another have something between them that is not read;
// null where not.
template <class Q, int R, int T>
static inline void dot_micro_kernel(Rows rows, Rows later, int64_t columns, const Pair* pairs,
                                    int64_t span, float (*y)[R]) {
  F sums[R][T];
  each<R>([&](auto r) { each<T>([&](auto t) { sums[r][t] = set(0); }); });
  const auto run = [&](auto r, const Q& w, const Pair* x) GEMELO_INLINE {
    each<Q::kPairs>([&](auto i) GEMELO_INLINE {
      const B u = w.quants(i);
      const F scale = w.scales(i);
      each<T>([&](auto t) GEMELO_INLINE {
        const Pair& p = x[t * span + i];
        const I start = Q::kMinima ? zeros() : load(p.bias);
        sums[r][t] = fma(floats(dot(start, u, load_bytes(p.q))), load(p.scale) * scale, sums[r][t]);
        if (Q::kMinima) sums[r][t] = fma(load(p.sums), w.minima(i), sums[r][t]);
      });
    });
  };
  const int64_t whole = columns / Q::kWeights;
  for (int64_t i = 0; i < whole; i++) {
    each<R>([&](auto r) GEMELO_INLINE {
      const uint8_t* p = rows[r] + i * Q::kBytes;
      if (later) prefetch(later[r] + i * Q::kBytes, Q::kBytes);
      else prefetch_ahead<0, 1, Q::kBytes>(p);
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

// A row of plain floats and T tokens as they are, x `span` apart. Sixteens of columns are added in
// turn to one of kChains sums, as a sum waits for its last addition.
template <class W, int T>
static inline GEMELO_INLINE void float_micro_kernel(const uint8_t* row, const uint8_t* later,
                                                    int64_t columns, const float* x, int64_t span,
                                                    float (*y)[1]) {
  constexpr int kLine = 64 / W::kBytes;  // columns that are fetched together
  F sums[kChains][T];
  each<kChains>([&](auto c) { each<T>([&](auto t) { sums[c][t] = set(0); }); });
  const auto add = [&](auto c, F w, int64_t at) GEMELO_INLINE {
    each<T>([&](auto t)
                GEMELO_INLINE { sums[c][t] = fma(w, load(x + t * span + at), sums[c][t]); });
  };
  int64_t at = 0;
  for (; at + 16 * kChains <= columns; at += 16 * kChains)
    each<kChains>([&](auto c) GEMELO_INLINE {
      const uint8_t* p = row + (at + 16 * c) * W::kBytes;
      if (16 * c % kLine == 0) {
        if (later) __builtin_prefetch(later + (p - row), 0, 2);
        else if (fetches_floats(W::kBytes, T)) prefetch_ahead(p);
      }
      add(c, W::at(p), at + 16 * c);
    });
  const std::integral_constant<int, 0> first;
  for (; at + 16 <= columns; at += 16) add(first, W::at(row + at * W::kBytes), at);
  if (const auto rest = (size_t)(columns - at)) {
    alignas(64) uint8_t bytes[64] = {};
    std::memcpy(bytes, row + at * W::kBytes, rest * W::kBytes);
    add(first, W::at(bytes), at);
  }
  each<T>([&](auto t) {
    F all = sums[0][t];
    for (int c = 1; c < kChains; c++) all = all + sums[c][t];
    y[t][0] = sum(all);
  });
}

// Rows [begin, end) for all tokens, by micro-tiles of R x T, of bytes or of floats.
template <int R, int T, class MicroKernel>
static inline void by_micro_tiles(const Matrix& w, int64_t row_bytes, int64_t begin, int64_t end,
                                  const Activations& y, int64_t token,
                                  const MicroKernel& micro_kernel) {
  const auto tiles = [&](auto apart) GEMELO_INLINE {
    const auto row = [&](int64_t r) GEMELO_INLINE {
      r = r < end ? r : end - 1;
      return apart ? w.row(r) : w.blocks + r * w.stride;
    };
    for (int64_t r = begin; apart && r < begin + kMicroTilesAhead * R && r < end; r++)
      prefetch(row(r), row_bytes);
    for (int64_t r = begin; r < end; r += R) {
      const uint8_t *rows[R], *later[R];
      for (int i = 0; i < R; i++) rows[i] = row(r + i);
      for (int i = 0; i < R && apart; i++) later[i] = row(r + kMicroTilesAhead * R + i);
      float out[T][R];
      micro_kernel(rows, apart ? later : nullptr, out);
      for (int t = 0; t < T; t++)
        for (int i = 0; i < R && r + i < end; i++) {
          put(y, token + t, r + i, out[t][i]);
          asm volatile("");  // GCC would make a scatter of it, which is slow
        }
    }
  };
  // Chosen rows, or rows of which a part is used, or rows one behind the other.
  if (w.index || w.stride > row_bytes) tiles(std::true_type{});
  else tiles(std::false_type{});
}

// body(begin, end) for rows [begin, end): all of them, or bands that stay near while more tokens
// meet them than go at once.
template <class Body>
static inline void by_bands(int64_t begin, int64_t end, int64_t row_bytes, int64_t tokens,
                            const Body& body) {
  const int64_t rows = std::max<int64_t>(16, kBandBytes / row_bytes / 16 * 16);
  const int64_t band = tokens > kTokensAtOnce ? rows : end - begin;
  for (int64_t row = begin; row < end; row += band) body(row, std::min(row + band, end));
}

// Rows [begin, end) for all tokens, which lie packed in pairs.
template <class Q>
static void dot_rows(const Matrix& w, int64_t begin, int64_t end, const Pair* x, int64_t tokens,
                     const Activations& y) {
  const int64_t span = pairs_of(w.columns), bytes = w.columns * Q::kBytes / Q::kWeights;
  const auto some = [&](auto R, auto T, int64_t first, int64_t last, int64_t t) GEMELO_INLINE {
    by_micro_tiles<R, T>(w, bytes, first, last, y, t, [&](Rows rows, Rows later, float(*out)[R]) {
      dot_micro_kernel<Q, R, T>(rows, later, w.columns, x + t * span, span, out);
    });
  };
  const std::integral_constant<int, 1> one;
  const std::integral_constant<int, 2> two;
  by_bands(begin, end, bytes, tokens, [&](int64_t first, int64_t last) {
    int64_t t = 0;
    for (; t + kTokensAtOnce <= tokens; t += kTokensAtOnce)
      some(two, std::integral_constant<int, kTokensAtOnce>{}, first, last, t);
    for (; t + 2 <= tokens; t += 2) some(two, two, first, last, t);
    if (t < tokens) some(one, one, first, last, t);
  });
}

// The same of plain floats: tokens lie `span` floats apart.
template <class W>
static void float_rows(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t span,
                       int64_t tokens, const Activations& y) {
  const int64_t bytes = w.columns * W::kBytes;
  const auto some = [&](auto T, int64_t first, int64_t last, int64_t t) GEMELO_INLINE {
    by_micro_tiles<1, T>(
        w, bytes, first, last, y, t, [&](Rows rows, Rows later, float(*out)[1]) GEMELO_INLINE {
          float_micro_kernel<W, T>(rows[0], later ? later[0] : nullptr, w.columns, x + t * span,
                                   span, out);
        });
  };
  by_bands(begin, end, bytes, tokens, [&](int64_t first, int64_t last) {
    int64_t t = 0;
    for (; t + kTokensAtOnce <= tokens; t += kTokensAtOnce)
      some(std::integral_constant<int, kTokensAtOnce>{}, first, last, t);
    for (; t < tokens; t++) some(std::integral_constant<int, 1>{}, first, last, t);
  });
}

}  // namespace GEMELO_ISA
