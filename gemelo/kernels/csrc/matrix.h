// Many tokens, with bytes: W8A8 products from a panel of weights that is expanded once for all
// tokens.
//
// A panel holds the bytes of some rows turned so that one register has four weights of each of
// sixteen rows; a tile multiplies it with a few tokens' broadcast fours. Levels and scales are
// applied after every 32 weights, as in the dot products, so the error is theirs too.

#pragma once

#include "activations.h"
#include "blocks.h"
#include "pool.h"
#include "scratch.h"
#include "unroll.h"

namespace GEMELO_ISA {

constexpr int kPanelRows = 16 * kRowBlocks;
constexpr int kPanelBlocks = 16;  // blocks of 32 weights in a panel: it stays in the first cache

// kTokens tokens side by side, 32 columns of them.
struct TokenBlock {
  int32_t fours[8][kTokens];
  float scale[kTokens];
  union {
    int32_t bias[2][kTokens];  // of both halves; of all 32 in the first, where levels hold for 32
    float sums[kTokens];
  };
};

// 32 columns of kPanelRows rows.
struct WeightBlock {
  int32_t fours[8][kPanelRows];
  float level[2][kPanelRows];  // of the first and second sixteen weights
  float offset[kPanelRows];
};

template <class Q>
static inline void pack_tokens(const Activations& x, int64_t token, int64_t tokens, int64_t columns,
                               Pair* pairs, TokenBlock* out) {
  const int64_t blocks = columns / 32;
  for (int t = 0; t < kTokens; t++) {
    const bool real = token + t < tokens;
    if (real) quantise(x, token + t, columns, Q::kZero, Q::kMinima, pairs);
    for (int64_t b = 0; b < blocks; b++) {
      const Pair& from = pairs[b / 2];
      const int half = b % 2;
      int32_t fours[8] = {}, bias[2] = {};
      float sums = 0;
      if (real) std::memcpy(fours, from.q + 32 * half, 32);
      for (int j = 0; j < 8; j++) out[b].fours[j][t] = fours[j];
      out[b].scale[t] = real ? from.scale[8 * half] : 0;
      for (int i = 0; real && i < 8; i++) {
        if (Q::kMinima) sums += from.sums[8 * half + i];
        else bias[Q::kLevels * i / 8] += from.bias[8 * half + i];
      }
      if (Q::kMinima) out[b].sums[t] = sums;
      else
        for (int h = 0; h < Q::kLevels; h++) out[b].bias[h][t] = bias[h];
    }
  }
}

template <class Q>
static inline void pack_run(const Q& run, int blocks, int row, WeightBlock* out) {
  alignas(64) uint8_t bytes[64 * Q::kPairs];
  for (int i = 0; i < Q::kPairs; i++) store(bytes + 64 * i, run.quants(i));
  for (int b = 0; b < blocks; b++) {
    int32_t fours[8];
    std::memcpy(fours, bytes + 32 * b, 32);
    for (int j = 0; j < 8; j++) out[b].fours[j][row] = fours[j];
    out[b].level[0][row] = run.level(2 * b);
    out[b].level[1][row] = run.level(2 * b + 1);
    out[b].offset[row] = run.offset(2 * b);
  }
}

// Blocks [first, last) of the rows from `row` on. Rows past the end repeat the last.
template <class Q>
static inline void pack_panel(const Matrix& w, int64_t row, int64_t first, int64_t last,
                              WeightBlock* out) {
  constexpr int kBlocks = Q::kWeights / 32;
  for (int r = 0; r < kPanelRows; r++) {
    const uint8_t* p = w.row(row + r < w.rows ? row + r : w.rows - 1);
    for (int64_t b = first; b < last; b += kBlocks) {
      const uint8_t* at = p + b / kBlocks * Q::kBytes;
      const int count = last - b < kBlocks ? (int)(last - b) : kBlocks;
      if (count == kBlocks) pack_run(Q{at}, count, r, out + (b - first));
      else pack_run(Q{Tail<Q>(at, 32 * count).bytes}, count, r, out + (b - first));
    }
  }
}

// sums[t][row] += panel times tokens.
template <class Q>
static inline void multiply(const WeightBlock* w, const TokenBlock* x, int64_t blocks,
                            float (*sums)[kPanelRows]) {
  F total[kTokens][kRowBlocks];
  const auto every = [](const auto& body) GEMELO_INLINE {
    each<kTokens>(
        [&](auto t) GEMELO_INLINE { each<kRowBlocks>([&](auto h) GEMELO_INLINE { body(t, h); }); });
  };
  every([&](auto t, auto h) GEMELO_INLINE { total[t][h] = load(sums[t] + 16 * h); });
  for (const WeightBlock* end = w + blocks; w < end; w++, x++) {
    each<Q::kLevels>([&](auto i) GEMELO_INLINE {
      I part[kTokens][kRowBlocks];
      every([&](auto t, auto h)
                GEMELO_INLINE { part[t][h] = Q::kMinima ? zeros() : all(x->bias[i][t]); });
      each<8 / Q::kLevels>([&](auto k) GEMELO_INLINE {
        constexpr int j = i * (8 / Q::kLevels) + k;
        every([&](auto t, auto h) GEMELO_INLINE {
          part[t][h] =
              dot(part[t][h], load_bytes(w->fours[j] + 16 * h), bytes_of(all(x->fours[j][t])));
        });
      });
      every([&](auto t, auto h) GEMELO_INLINE {
        total[t][h] =
            fma(floats(part[t][h]), load(w->level[i] + 16 * h) * set(x->scale[t]), total[t][h]);
      });
    });
    if (Q::kMinima) {
      every([&](auto t, auto h) GEMELO_INLINE {
        total[t][h] = fma(set(x->sums[t]), load(w->offset + 16 * h), total[t][h]);
      });
    }
  }
  every([&](auto t, auto h) GEMELO_INLINE { store(sums[t] + 16 * h, total[t][h]); });
}

template <class Q>
static void pack_matrix(gemelo::Worker& worker, const Activations& x, int64_t tokens,
                        int64_t columns, void* packed) {
  static thread_local gemelo::Scratch pair_room;
  const int64_t blocks = columns / 32, tiles = (tokens + kTokens - 1) / kTokens;
  int64_t begin, end;
  worker.share(tiles, 1, begin, end);
  Pair* pairs = pair_room.room<Pair>((blocks + 1) / 2);
  for (int64_t i = begin; i < end; i++)
    pack_tokens<Q>(x, i * kTokens, tokens, columns, pairs, (TokenBlock*)packed + i * blocks);
}

template <class Q>
static void multiply_matrix(gemelo::Worker& worker, const void* tokens_packed, int64_t tokens,
                            const Matrix& w, const Activations& y) {
  static thread_local gemelo::Scratch panel_room, sum_room;
  const auto* packed = (const TokenBlock*)tokens_packed;
  const int64_t blocks = w.columns / 32, tiles = (tokens + kTokens - 1) / kTokens;
  int64_t begin, end;
  auto* panel = panel_room.room<WeightBlock>(kPanelBlocks);
  auto* sums = sum_room.room<float[kPanelRows]>(tiles * kTokens);
  worker.share(w.rows, kPanelRows, begin, end);
  for (int64_t row = begin; row < end; row += kPanelRows) {
    std::memset(sums, 0, sizeof(float[kPanelRows]) * tiles * kTokens);
    for (int64_t first = 0; first < blocks; first += kPanelBlocks) {
      const int64_t last = first + kPanelBlocks < blocks ? first + kPanelBlocks : blocks;
      pack_panel<Q>(w, row, first, last, panel);
      for (int64_t i = 0; i < tiles; i++)
        multiply<Q>(panel, packed + i * blocks + first, last - first, sums + i * kTokens);
    }
    for (int64_t t = 0; t < tokens; t++) {
      if (row + kPanelRows <= w.rows)
        for (int h = 0; h < kRowBlocks; h++) store16(y, t, row + 16 * h, load(sums[t] + 16 * h));
      else
        for (int64_t r = row; r < w.rows; r++) put(y, t, r, sums[t][r - row]);
    }
  }
}

}  // namespace GEMELO_ISA
