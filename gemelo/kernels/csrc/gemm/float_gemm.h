// GEMM of many tokens with plain floats, summed in float, as BLIS does it: weights are widened and
// interleaved into panels that stay in the second cache, and meet all tokens there, a few tokens at
// a time, which stay in the first.
//
// What a (row, token) pair adds up is one product after the other, in the order of the columns:
// nothing else changes it. Few tokens go by dot products (rows.h), in another order.

#pragma once

#include "gemm/activations.h"
#include "gemm/panels.h"
#include "runtime/pool.h"

namespace GEMELO_ISA {

constexpr int kFloatPanel = kPanelRows * kFloatRegisters;  // rows of a micro-tile
constexpr int64_t kFloatRows = 128;                        // that are widened at once
constexpr int64_t kFloatColumns = 512;                     // of them: 256 KB of the second cache

static inline int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

static size_t packed_float_bytes(int64_t tokens, int64_t columns) {
  const int64_t tiles = (tokens + kFloatTokens - 1) / kFloatTokens;
  return sizeof(float) * tiles * kFloatTokens * padded(columns);
}

// This worker's share of the tokens: kFloatTokens of them side by side, column by column; what is
// not there is zero.
static void pack_floats(gemelo::Worker& worker, const Activations& x, int64_t tokens,
                        int64_t columns, float* packed) {
  const int64_t span = padded(columns), tiles = (tokens + kFloatTokens - 1) / kFloatTokens;
  int64_t begin, end;
  worker.share(tiles, 1, begin, end);
  for (int64_t tile = begin; tile < end; tile++) {
    const int64_t token = tile * kFloatTokens;
    float* out = packed + token * span;
    for (int64_t at = 0; at < span; at += 16, out += 16 * kFloatTokens) {
      float lines[kFloatTokens][16] = {};
      for (int t = 0; t < kFloatTokens && token + t < tokens; t++)
        if (at + 16 <= columns) store(lines[t], load16(x, token + t, at));
        else
          for (int64_t i = at; i < columns; i++) lines[t][i - at] = get(x, token + t, i);
      for (int i = 0; i < 16; i++)
        for (int t = 0; t < kFloatTokens; t++) out[i * kFloatTokens + t] = lines[t][i];
    }
  }
}

// Columns [first, last) of the sixteen rows from `row` on, widened: kPanelRows of each column, then
// those of the next, `stride` apart; zeros up to whole sixteens of columns. Rows past the end
// repeat the last.
template <class W>
static inline void widen_panel(const Matrix& w, int64_t row, int64_t first, int64_t last,
                               int64_t stride, float* out) {
  alignas(64) float wide[kPanelRows][16], lines[16][kPanelRows];
  const uint8_t* rows[kPanelRows];
  for (int r = 0; r < kPanelRows; r++) rows[r] = (const uint8_t*)wide[r];
  for (int64_t at = first; at < last; at += 16) {
    const int64_t there = last - at < 16 ? last - at : 16;
    for (int r = 0; r < kPanelRows; r++) {
      const uint8_t* p = w.row(row + r < w.rows ? row + r : w.rows - 1) + at * W::kBytes;
      alignas(64) uint8_t rest[64] = {};
      if (there < 16) p = (const uint8_t*)std::memcpy(rest, p, there * W::kBytes);
      store(wide[r], W::at(p));
    }
    interleave_fours(rows, 0, 16, (uint8_t*)lines, 0);
    for (int i = 0; i < 16; i++, out += stride) store(out, load(lines[i]));
  }
}

// Sums (T tokens x kFloatPanel rows) = or += so many columns of tokens times as many of a panel.
template <int T>
static inline void float_tile(const float* x, const float* w, int64_t columns, bool fresh,
                              float* sums) {
  F y[T][kFloatRegisters];
  each<T>([&](auto t) GEMELO_INLINE {
    each<kFloatRegisters>([&](auto i) GEMELO_INLINE {
      y[t][i] = fresh ? set(0) : load(sums + t * kFloatPanel + 16 * i);
    });
  });
  for (; columns; columns--, w += kFloatPanel, x += kFloatTokens) {
    F of_rows[kFloatRegisters];
    each<kFloatRegisters>([&](auto i) GEMELO_INLINE { of_rows[i] = load(w + 16 * i); });
    each<T>([&](auto t) GEMELO_INLINE {
      const F of_token = set(x[t]);
      each<kFloatRegisters>(
          [&](auto i) GEMELO_INLINE { y[t][i] = fma(of_rows[i], of_token, y[t][i]); });
    });
  }
  each<T>([&](auto t) GEMELO_INLINE {
    each<kFloatRegisters>(
        [&](auto i) GEMELO_INLINE { store(sums + t * kFloatPanel + 16 * i, y[t][i]); });
  });
}

// A micro-tile's sums to their place in y.
static inline void write_float_tile(const float* sums, const Activations& y, int64_t token,
                                    int64_t tokens, int64_t row, int64_t rows) {
  for (int64_t t = token; t < token + kFloatTokens && t < tokens; t++, sums += kFloatPanel)
    for (int64_t r = row; r < row + kFloatPanel && r < rows; r += 16) {
      if (r + 16 <= rows) store16(y, t, r, load(sums + (r - row)));
      else
        for (int64_t i = r; i < rows; i++) put(y, t, i, sums[i - row]);
    }
}

template <class W>
static void multiply_floats(gemelo::Worker& worker, const float* packed, int64_t tokens,
                            const Matrix& w, const Activations& y) {
  static thread_local gemelo::Scratch panel_room, sum_room;
  constexpr int kHalf = kFloatTokens / 2;
  const int64_t span = padded(w.columns), tiles = (tokens + kFloatTokens - 1) / kFloatTokens;
  float* panels = panel_room.room<float>(kFloatRows * kFloatColumns);
  float* sums = sum_room.room<float>(kFloatRows * tiles * kFloatTokens);
  const auto block = [&](int64_t row, int64_t last) {
    const int64_t abreast = (last - row + kFloatPanel - 1) / kFloatPanel;
    const auto sums_of = [&](int64_t tile, int64_t panel) {
      return sums + (tile * abreast + panel) * kFloatTokens * kFloatPanel;
    };
    for (int64_t first = 0; first < w.columns; first += kFloatColumns) {
      const int64_t until = first + kFloatColumns < w.columns ? first + kFloatColumns : w.columns;
      const int64_t columns = padded(until - first);
      for (int64_t i = 0; i < abreast * kFloatRegisters; i++)
        widen_panel<W>(w, row + kPanelRows * i, first, until, kFloatPanel,
                       panels + i / kFloatRegisters * kFloatPanel * columns +
                           i % kFloatRegisters * kPanelRows);
      for (int64_t tile = 0; tile < tiles; tile++) {
        const float* x = packed + (tile * span + first) * kFloatTokens;
        const bool half = tokens - tile * kFloatTokens <= kHalf;
        for (int64_t panel = 0; panel < abreast; panel++) {
          const float* of_rows = panels + panel * kFloatPanel * columns;
          if (half) float_tile<kHalf>(x, of_rows, columns, first == 0, sums_of(tile, panel));
          else float_tile<kFloatTokens>(x, of_rows, columns, first == 0, sums_of(tile, panel));
        }
      }
    }
    for (int64_t tile = 0; tile < tiles; tile++)
      for (int64_t panel = 0; panel < abreast; panel++)
        write_float_tile(sums_of(tile, panel), y, tile * kFloatTokens, tokens,
                         row + kFloatPanel * panel, last);
  };
  worker.deal(w.rows, kFloatPanel, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += kFloatRows)
      block(row, row + kFloatRows < end ? row + kFloatRows : end);
  });
}

}  // namespace GEMELO_ISA
