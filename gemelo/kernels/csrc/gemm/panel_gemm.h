// GEMM and GEMV with int8 over panels (W8A8): the micro-kernel multiplies one panel of weights with
// a few tokens' broadcast fours.
//
// Stored panels are multiplied where they lie, for one token or many. Rows of blocks are
// interleaved into panels on the way, a cache's worth at a time for all tokens: for many tokens, and
// for few where the rows are to become panels later and give the same bits now. The scales of both
// are applied after every 32 weights, as in the dot products of rows, so the error is theirs too.
// What a (row, token) pair adds up, and in which order, depends on nothing else, as there.

#pragma once

#include <algorithm>

#include "gemm/activations.h"
#include "gemm/interleave.h"
#include "runtime/pool.h"
#include "simd/prefetch.h"

namespace GEMELO_ISA {

constexpr int64_t kChunk = 512;          // columns of rows that are interleaved at once
constexpr int64_t kNearBytes = 1 << 18;  // of stored panels that stay near for all tokens
constexpr int64_t kAbreast = 8;          // panels of either

// T tokens side by side, 32 columns of them.
template <int T>
struct TokenBlock {
  int32_t fours[8][T];
  float scale[T];
  union {
    int32_t bias[2][T];  // of both halves; of all 32 in the first, where scales hold for 32
    float sums[T];
  };
};

// Tokens [token, token + T) as blocks, filled up to whole units; tokens that are not there are
// zero.
template <class P, int T>
static inline void pack_tokens(const Activations& x, int64_t token, int64_t tokens, int64_t columns,
                               Pair* pairs, TokenBlock<T>* out) {
  const int64_t blocks = units_of<P>(columns) * P::kBlocks;
  for (int t = 0; t < T; t++) {
    const bool real = token + t < tokens;
    if (real) quantise(x, token + t, columns, P::kZero, P::kMinima, pairs);
    for (int64_t b = 0; b < blocks; b++) {
      const Pair& from = pairs[b / 2];
      const int half = b % 2;
      int32_t fours[8] = {}, bias[2] = {};
      float sums = 0;
      if (real) std::memcpy(fours, from.q + 32 * half, 32);
      for (int j = 0; j < 8; j++) out[b].fours[j][t] = fours[j];
      out[b].scale[t] = real ? from.scale[8 * half] : 0;
      for (int i = 0; real && i < 8; i++) {
        if (P::kMinima) sums += from.sums[8 * half + i];
        else bias[P::kNumScales * i / 8] += from.bias[8 * half + i];
      }
      if (P::kMinima) out[b].sums[t] = sums;
      else
        for (int h = 0; h < P::kNumScales; h++) out[b].bias[h][t] = bias[h];
    }
  }
}

// sums[t][row] += units of a panel times T tokens.
template <class P, int T>
static inline void multiply_units(const uint8_t* panel, int64_t units, bool ahead,
                                  const TokenBlock<T>* x, float (*sums)[kPanelRows]) {
  constexpr int kRuns = P::kBlocks / P::kRun, kSteps = P::kRun * P::kNumScales;
  constexpr int kRunBytes = P::kUnit / kRuns;
  constexpr int64_t kNearRun = P::kRun > 2 ? kL1AheadUnordered : kL1Ahead;
  F total[T];
  each<T>([&](auto t) GEMELO_INLINE { total[t] = load(sums[t]); });
  for (const uint8_t* end = panel + units * P::kUnit; panel < end; panel += P::kUnit) {
    const InPanel unit{panel};
    for (int run = 0; run < kRuns; run++, x += P::kRun) {
      const uint8_t* lines = panel + run * kRunBytes;
      each<kSteps>([&](auto which) GEMELO_INLINE {
        constexpr int block = which / P::kNumScales, half = which % P::kNumScales;
        I part[T];
        each<T>([&](auto t) GEMELO_INLINE {
          part[t] = P::kMinima ? zeros() : all(x[block].bias[half][t]);
        });
        each<8 / P::kNumScales>([&](auto i) GEMELO_INLINE {
          constexpr int four = half * (8 / P::kNumScales) + i;
          // Line by line as they are used: many at once would wait for one another.
          if (ahead) prefetch_ahead<8 * block + four, 8 * P::kRun, kRunBytes, kNearRun>(lines);
          const B u = P::quants(unit, run, block, four);
          each<T>([&](auto t) GEMELO_INLINE {
            part[t] = dot(part[t], u, bytes_of(all(x[block].fours[four][t])));
          });
        });
        const F scale = P::scales(unit, run, block, half);
        each<T>([&](auto t) GEMELO_INLINE {
          total[t] = fma(floats(part[t]), scale * set(x[block].scale[t]), total[t]);
        });
        if constexpr (P::kMinima) {
          const F minimum = P::minima(unit, run, block);
          each<T>([&](auto t)
                      GEMELO_INLINE { total[t] = fma(set(x[block].sums[t]), minimum, total[t]); });
        }
      });
    }
  }
  each<T>([&](auto t) GEMELO_INLINE { store(sums[t], total[t]); });
}

template <class P, int T>
static void pack_matrix(gemelo::Worker& worker, const Activations& x, int64_t tokens,
                        int64_t columns, void* packed) {
  const int64_t blocks = units_of<P>(columns) * P::kBlocks;
  int64_t begin, end;
  worker.share((tokens + T - 1) / T, 1, begin, end);
  Pair* pairs = pair_room.room<Pair>((blocks + 1) / 2);
  for (int64_t i = begin; i < end; i++)
    pack_tokens<P>(x, i * T, tokens, columns, pairs, (TokenBlock<T>*)packed + i * blocks);
}

// A token's sums of the sixteen rows from `row` on, as far as there are rows.
static inline void put_panel(const Activations& y, int64_t token, int64_t row, int64_t rows,
                             const float* sums) {
  if (row + kPanelRows <= rows) store16(y, token, row, load(sums));
  else
    for (int64_t r = row; r < rows; r++) put(y, token, r, sums[r - row]);
}

// Units of a panel that all tokens meet before they meet the next ones. Stored panels are cut as
// seldom as may be, and evenly: where a short piece is left, what lies behind it comes from memory
// without having been fetched ahead.
template <class P>
static inline int64_t units_at_once(int64_t units, int64_t abreast, bool stored) {
  if (!stored) return kChunk / P::kWeights;
  const int64_t near = kNearBytes / (kAbreast * P::kUnit);
  const int64_t chunks = abreast == 1 ? 1 : 1 + (units - 1) / near;
  return (units + chunks - 1) / chunks;
}

// Rows of w times tokens that lie packed, T in a micro-tile. Of many micro-tiles each meets some
// panels before the next one does: tokens are read from farther away than a chunk of panels.
template <class P, int T>
static void multiply_packed(gemelo::Worker& worker, const TokenBlock<T>* packed, int64_t tokens,
                            const Matrix& w, const Activations& y) {
  const int64_t units = units_of<P>(w.columns), micro_tiles = (tokens + T - 1) / T;
  const bool stored = w.layout == gemelo::Layout::kPanels;
  const int64_t abreast = micro_tiles == 1 ? 1 : kAbreast;
  const int64_t chunk = units_at_once<P>(units, abreast, stored);
  auto* interleaved = panel_room.room<uint8_t>(stored ? 0 : abreast * chunk * P::kUnit);
  auto* sums = sum_room.room<float[kPanelRows]>(abreast * micro_tiles * T);
  worker.deal(w.rows, kPanelRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += abreast * kPanelRows) {
      const int64_t panels = std::min(abreast, (end - row + kPanelRows - 1) / kPanelRows);
      std::memset(sums, 0, sizeof(*sums) * panels * micro_tiles * T);
      for (int64_t first = 0; first < units; first += chunk) {
        const int64_t last = first + chunk < units ? first + chunk : units;
        const uint8_t* panel[kAbreast];
        for (int64_t i = 0; i < panels; i++)
          panel[i] =
              units_at<P>(w, row + i * kPanelRows, first, last, interleaved + i * chunk * P::kUnit);
        for (int64_t micro_tile = 0; micro_tile < micro_tiles; micro_tile++)
          for (int64_t i = 0; i < panels; i++)
            multiply_units<P, T>(panel[i], last - first, stored && micro_tile == 0,
                                 packed + (micro_tile * units + first) * P::kBlocks,
                                 sums + (i * micro_tiles + micro_tile) * T);
      }
      for (int64_t i = 0; i < panels; i++)
        for (int64_t t = 0; t < tokens; t++)
          put_panel(y, t, row + i * kPanelRows, w.rows, sums[i * micro_tiles * T + t]);
    }
  });
}

// One token, which every thread packs for itself: cheaper than waiting for one another.
template <class P>
static void multiply_one(gemelo::Worker& worker, const Activations& x, const Matrix& w,
                         const Activations& y) {
  const int64_t blocks = units_of<P>(w.columns) * P::kBlocks;
  auto* packed = packed_room.room<TokenBlock<1>>(blocks);
  pack_tokens<P>(x, 0, 1, w.columns, pair_room.room<Pair>((blocks + 1) / 2), packed);
  multiply_packed<P, 1>(worker, packed, 1, w, y);
}

}  // namespace GEMELO_ISA
