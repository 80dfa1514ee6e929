// GEMM of many tokens in bfloat16 tiles, summed in float: on AMX's tile unit, or with AVX-512's dot
// products.
//
// A tile is 16 rows of 64 bytes; AMX multiplies 16 tokens of 32 columns with pairs of columns of 16
// rows, which is how panels have them: weights of any format are expanded to bfloat16 out of
// panels, and nothing but plain floats has to be transposed. There are no scales left to apply in
// between, which is why this beats the byte products by more than the peaks say. Without AMX the
// same tiles go through dot products of pairs, twice as fast as floats and half as fast as bytes:
// plain floats and attention take them. Rounding weights and activations to eight bits of mantissa
// costs less than rounding activations to bytes.

#pragma once

#include "gemm/activations.h"
#include "gemm/panel_gemm.h"
#include "runtime/pool.h"

namespace GEMELO_ISA {

constexpr int64_t kTileRows = 128;      // of the weights that are expanded at once
constexpr int64_t kTileColumns = 2048;  // and their columns: half a megabyte of the second cache
using Tile = uint16_t[512];             // sixteen rows of 32 bfloat16, or 16 x 16 floats in two

// Whether the products of many tokens with a format take tiles.
static inline bool in_tiles(gemelo::Format format) {
#ifdef GEMELO_AMX
  return format != gemelo::kF32;
#else
  return format == gemelo::kF16 || format == gemelo::kBF16;
#endif
}

#ifdef GEMELO_AMX
struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A constant, not a local: GCC 12 takes the instruction to read eight bytes of it, and would drop
// the stores of the others.
static const TileConfig kTileConfig;

static inline void begin_tiles() { _tile_loadconfig(&kTileConfig); }
static inline void end_tiles() { _tile_release(); }
#else
static inline void begin_tiles() {}
static inline void end_tiles() {}
#endif

// Columns [at, at + 32) of one token or row of floats as bfloat16, zeros past the last.
static inline __m512i tile_row(const Activations& x, int64_t token, int64_t at, int64_t columns) {
  const int64_t there = columns - at;
  if (there >= 32)
    return (__m512i)_mm512_cvtne2ps_pbh(load16(x, token, at + 16), load16(x, token, at));
  float values[32] = {};
  for (int64_t j = 0; j < there; j++) values[j] = get(x, token, at + j);
  return (__m512i)_mm512_cvtne2ps_pbh(load(values + 16), load(values));
}

// Sixteen tokens as tiles of 16 tokens x 32 columns; what is not there is zero.
static inline void pack_tile_tokens(const Activations& x, int64_t token, int64_t tokens,
                                    int64_t columns, Tile* out) {
  for (int64_t at = 0; at < columns; at += 32, out++)
    for (int i = 0; i < 16; i++)
      _mm512_storeu_si512(*out + 32 * i, token + i < tokens ? tile_row(x, token + i, at, columns)
                                                            : _mm512_setzero_si512());
}

// Sixteen rows from `row` on, columns [first, last), as tiles of 16 pairs of columns x 16 rows.
template <class P>
struct BlockTiles {
  static void expand(const Matrix& w, int64_t row, int64_t first, int64_t last, Tile* out) {
    alignas(64) uint8_t interleaved[P::kUnit];
    for (int64_t at = first; at < last; at += P::kWeights, out += P::kBlocks) {
      const int64_t unit = at / P::kWeights;
      const InPanel from{units_at<P>(w, row, unit, unit + 1, interleaved)};
      const int there = last - at < P::kWeights ? (int)(last - at) / 32 : P::kBlocks;
      for (int run = 0; run * P::kRun < there; run++)
        each<P::kRun>([&](auto block) GEMELO_INLINE {
          if (run * P::kRun + block < there)
            expand_block(from, run, block, out[run * P::kRun + block]);
        });
    }
  }
  static inline GEMELO_INLINE void expand_block(const InPanel& from, int run, int block,
                                                uint16_t* out) {
    // The words of two registers of sixteen, alternately.
    const __m512i alternate =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i byte = _mm512_set1_epi32(255);
    each<8>([&](auto four) GEMELO_INLINE {
      const F scale = P::scales(from, run, block, four / 4);
      F minimum = scale * set(P::kZero);
      if constexpr (P::kMinima) minimum = P::minima(from, run, block);
      const __m512i u = P::quants(from, run, block, four);
      const auto weight = [&](__m512i q) GEMELO_INLINE {
        return _mm512_fmsub_ps(_mm512_cvtepi32_ps(q), scale, minimum);
      };
      const F a = weight(_mm512_and_si512(u, byte));
      const F b = weight(_mm512_and_si512(_mm512_srli_epi32(u, 8), byte));
      const F c = weight(_mm512_and_si512(_mm512_srli_epi32(u, 16), byte));
      const F d = weight(_mm512_srli_epi32(u, 24));
      const auto put_pair = [&](int pair, F even, F odd) GEMELO_INLINE {
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
        _mm512_storeu_si512(out + 32 * pair, _mm512_permutexvar_epi16(alternate, both));
      };
      put_pair(2 * four, a, b);
      put_pair(2 * four + 1, c, d);
    });
  }
};

template <class W>
struct FloatTiles {
  static void expand(const Matrix& w, int64_t row, int64_t first, int64_t last, Tile* out) {
    for (int64_t at = first; at < last; at += 32, out++) {
      __m512i lines[16];
      for (int r = 0; r < 16; r++) {
        const uint8_t* p = w.row(row + r < w.rows ? row + r : w.rows - 1) + at * W::kBytes;
        alignas(64) uint8_t rest[128] = {};
        if (last - at < 32) {
          std::memcpy(rest, p, (last - at) * W::kBytes);
          p = rest;
        }
        lines[r] = (__m512i)_mm512_cvtne2ps_pbh(W::at(p + 16 * W::kBytes), W::at(p));
      }
      transpose(lines);
      for (int i = 0; i < 16; i++) _mm512_storeu_si512(*out + 32 * i, lines[i]);
    }
  }
};

// C (32 x 32, row stride 4 * `stride` bytes) = or += A (two rows of tiles) times B (two columns).
#ifdef GEMELO_AMX
static inline void tile_block(const Tile* a, int64_t a_span, const Tile* b, int64_t b_step,
                              int64_t b_span, int64_t steps, float* c, int64_t stride, bool fresh) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c, 4 * stride);
    _tile_loadd(1, c + 16, 4 * stride);
    _tile_loadd(2, c + 16 * stride, 4 * stride);
    _tile_loadd(3, c + 16 * stride + 16, 4 * stride);
  }
  for (int64_t k = 0; k < steps; k++) {
    _tile_loadd(4, a[k], 64);
    _tile_loadd(6, b[k * b_step], 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b[k * b_step + b_span], 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a[k + a_span], 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 4 * stride);
  _tile_stored(1, c + 16, 4 * stride);
  _tile_stored(2, c + 16 * stride, 4 * stride);
  _tile_stored(3, c + 16 * stride + 16, 4 * stride);
}
#else
static inline void tile_block(const Tile* a, int64_t a_span, const Tile* b, int64_t b_step,
                              int64_t b_span, int64_t steps, float* c, int64_t stride, bool fresh) {
  constexpr int kRows = 8;  // of C, that registers hold
  for (int row = 0; row < 32; row += kRows, c += kRows * stride) {
    F left[kRows], right[kRows];
    each<kRows>([&](auto i) GEMELO_INLINE {
      left[i] = fresh ? set(0) : load(c + i * stride);
      right[i] = fresh ? set(0) : load(c + i * stride + 16);
    });
    for (int64_t k = 0; k < steps; k++) {
      const uint16_t* x = a[k + row / 16 * a_span] + row % 16 * 32;
      const uint16_t *y = b[k * b_step], *z = b[k * b_step + b_span];
      for (int pair = 0; pair < 32; pair += 2) {
        const auto of_left = (__m512bh)_mm512_loadu_si512(y + 16 * pair);
        const auto of_right = (__m512bh)_mm512_loadu_si512(z + 16 * pair);
        each<kRows>([&](auto i) GEMELO_INLINE {
          int32_t both;
          std::memcpy(&both, x + 32 * i + pair, sizeof both);
          const auto of_row = (__m512bh)_mm512_set1_epi32(both);
          left[i] = _mm512_dpbf16_ps(left[i], of_left, of_row);
          right[i] = _mm512_dpbf16_ps(right[i], of_right, of_row);
        });
      }
    }
    each<kRows>([&](auto i) GEMELO_INLINE {
      store(c + i * stride, left[i]);
      store(c + i * stride + 16, right[i]);
    });
  }
}
#endif

// 32 x 32 sums, tokens and rows, to their place in y.
static inline void write_block(const float* sums, const Activations& y, int64_t token,
                               int64_t tokens, int64_t row, int64_t rows) {
  for (int64_t t = token; t < token + 32 && t < tokens; t++, sums += 32)
    for (int64_t r = row; r < row + 32 && r < rows; r += 16) {
      if (r + 16 <= rows) store16(y, t, r, load(sums + (r - row)));
      else
        for (int64_t i = r; i < rows; i++) put(y, t, i, sums[i - row]);
    }
}

static void pack_tiles(gemelo::Worker& worker, const Activations& x, int64_t tokens,
                       int64_t columns, void* packed) {
  const int64_t steps = (columns + 31) / 32, groups = (tokens + 31) / 32 * 2;
  int64_t begin, end;
  worker.share(groups, 1, begin, end);
  for (int64_t i = begin; i < end; i++)
    pack_tile_tokens(x, i * 16, tokens, columns, (Tile*)packed + i * steps);
}

template <class Tiles>
static void multiply_tiles(gemelo::Worker& worker, const void* tokens_packed, int64_t tokens,
                           const Matrix& w, const Activations& y) {
  const auto* packed = (const Tile*)tokens_packed;
  const int64_t steps = (w.columns + 31) / 32, groups = (tokens + 31) / 32 * 2;
  begin_tiles();
  Tile* expanded = panel_room.room<Tile>(kTileRows / 16 * (kTileColumns / 32));
  float* sums = sum_room.room<float>(kTileRows * groups * 16);
  worker.deal(w.rows, 32, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += kTileRows) {
      const int64_t last = row + kTileRows < end ? row + kTileRows : end;
      const int64_t bands = (last - row + 31) / 32;
      for (int64_t first = 0; first < w.columns; first += kTileColumns) {
        const int64_t until = first + kTileColumns < w.columns ? first + kTileColumns : w.columns;
        const int64_t span = (until - first + 31) / 32;
        for (int64_t i = 0; i < 2 * bands; i++)
          Tiles::expand(w, row + 16 * i, first, until, expanded + i * span);
        for (int64_t group = 0; group < groups; group += 2) {
          const Tile* x = packed + group * steps + first / 32;
          for (int64_t band = 0; band < bands; band++)
            tile_block(x, steps, expanded + 2 * band * span, 1, span, span,
                       sums + (group / 2 * bands + band) * 1024, 32, first == 0);
        }
      }
      for (int64_t group = 0; group < groups; group += 2)
        for (int64_t band = 0; band < bands; band++)
          write_block(sums + (group / 2 * bands + band) * 1024, y, group * 16, tokens,
                      row + 32 * band, last);
    }
  });
  end_tiles();
}

}  // namespace GEMELO_ISA
