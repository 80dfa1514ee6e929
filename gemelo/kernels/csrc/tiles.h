// Many tokens, on a machine with AMX: bfloat16 products on the tile unit, summed in float.
//
// A tile register is 16 rows of 64 bytes; one instruction multiplies 16 rows of 32 weights with 16
// tokens. Weights of any format are expanded to bfloat16, a block of 32 to a tile row, so that
// nothing has to be turned; tokens are turned once per product. There are no scales left to apply
// in between, which is why this beats the byte products by more than the peaks say. Rounding
// weights and activations to eight bits of mantissa costs less than rounding activations to bytes.

#pragma once

#include "activations.h"
#include "blocks.h"
#include "pool.h"
#include "scratch.h"

namespace GEMELO_ISA {

constexpr int64_t kTileRows = 128;      // rows of a panel
constexpr int64_t kTileColumns = 2048;  // and its columns: half a megabyte of the second cache
using Tile = uint16_t[512];             // sixteen rows of 32 bfloat16, or 16 x 16 floats in two

struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A constant, not a local: GCC 12 takes the instruction to read eight bytes of it, and would drop
// the stores of the others.
static const TileConfig kTileConfig;

// 16 x 16 words: out[j][i] = in[i][j].
static inline void turn(__m512i x[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xDD);
    y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; i++) {
    x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
    x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xDD);
    x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xDD);
  }
}

// Sixteen tokens as tiles of 16 pairs of columns x 16 tokens; what is not there is zero.
static inline void pack_tile_tokens(const Activations& x, int64_t token, int64_t tokens,
                                    int64_t columns, Tile* out) {
  for (int64_t at = 0; at < columns; at += 32, out++) {
    __m512i lines[16];
    for (int i = 0; i < 16; i++) {
      lines[i] = _mm512_setzero_si512();
      if (token + i >= tokens) continue;
      alignas(64) uint16_t line[32] = {};
      const int64_t there = columns - at < 32 ? columns - at : 32;
      if (there == 32) {
        store_bf16(line, load16(x, token + i, at));
        store_bf16(line + 16, load16(x, token + i, at + 16));
      } else {
        float values[32] = {};
        for (int64_t j = 0; j < there; j++) values[j] = get(x, token + i, at + j);
        store_bf16(line, load(values));
        store_bf16(line + 16, load(values + 16));
      }
      lines[i] = _mm512_load_si512(line);
    }
    turn(lines);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512((*out) + 32 * i, lines[i]);
  }
}

// Columns [first, last) of one row, as the rows number `line` of a run of tiles.
template <class Q>
struct TileLine {
  static void pack(const uint8_t* row, int64_t first, int64_t last, int line, Tile* out) {
    for (int64_t at = first; at < last; at += Q::kWeights) {
      const int64_t there = last - at < Q::kWeights ? last - at : Q::kWeights;
      const uint8_t* p = row + at / Q::kWeights * Q::kBytes;
      Tile* tile = out + (at - first) / 32;
      if (there == Q::kWeights) run(Q{p}, Q::kPairs * 2, line, tile);
      else run(Q{Tail<Q>(p, (int)there).bytes}, (int)there / 32, line, tile);
    }
  }
  static inline void run(const Q& w, int blocks, int line, Tile* out) {
#pragma GCC unroll 4
    for (int i = 0; i < Q::kPairs; i++) {
      const B u = w.quants(i);
      uint16_t* p = out[2 * i] + 32 * line;
      both(p, widen<0>(u), widen<1>(u), w, 4 * i);
      if (2 * i + 1 < blocks)
        both(out[2 * i + 1] + 32 * line, widen<2>(u), widen<3>(u), w, 4 * i + 2);
    }
  }
  static inline void both(uint16_t* p, F a, F b, const Q& w, int i) {
    a = fma(a, set(w.level(i)), set(-w.offset(i)));
    b = fma(b, set(w.level(i + 1)), set(-w.offset(i + 1)));
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
};

template <class W>
struct FloatLine {
  static void pack(const uint8_t* row, int64_t first, int64_t last, int line, Tile* out) {
    for (int64_t at = first; at < last; at += 32, out++) {
      const int64_t there = last - at < 32 ? last - at : 32;
      const uint8_t* p = row + at * W::kBytes;
      alignas(64) uint8_t rest[128] = {};
      if (there < 32) {
        std::memcpy(rest, p, there * W::kBytes);
        p = rest;
      }
      store_bf16(*out + 32 * line, W::at(p));
      store_bf16(*out + 32 * line + 16, W::at(p + 16 * W::kBytes));
    }
  }
};

// 32 rows (two runs of tiles) times 32 tokens, onto four tiles of sums.
static inline void multiply_strip(const Tile* w, int64_t span, const Tile* x, const Tile* x2,
                                  int64_t steps, float* sums, bool fresh) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    _tile_loadd(2, sums + 512, 64);
    _tile_loadd(3, sums + 768, 64);
  }
  for (int64_t k = 0; k < steps; k++) {
    _tile_loadd(4, w[k], 64);
    _tile_loadd(6, x[k], 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, x2[k], 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, w[span + k], 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// A tile of sums (16 rows x 16 tokens) to its place in y.
static inline void write_tile(const float* sums, const Activations& y, int64_t token,
                              int64_t tokens, int64_t row, int64_t rows) {
  __m512i lines[16];
  for (int i = 0; i < 16; i++) lines[i] = _mm512_loadu_si512(sums + 16 * i);
  turn(lines);
  for (int i = 0; i < 16 && token + i < tokens; i++) {
    if (row + 16 <= rows) {
      store16(y, token + i, row, _mm512_castsi512_ps(lines[i]));
    } else {
      float lanes[16];
      _mm512_storeu_si512(lanes, lines[i]);
      for (int64_t r = row; r < rows; r++) put(y, token + i, r, lanes[r - row]);
    }
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

template <class Line>
static void multiply_tiles(gemelo::Worker& worker, const void* tokens_packed, int64_t tokens,
                           const Matrix& w, const Activations& y) {
  static thread_local gemelo::Scratch panel_room, sum_room;
  const auto* packed = (const Tile*)tokens_packed;
  const int64_t steps = (w.columns + 31) / 32, groups = (tokens + 31) / 32 * 2;
  int64_t begin, end;
  _tile_loadconfig(&kTileConfig);
  worker.share(w.rows, 32, begin, end);
  Tile* panel = panel_room.room<Tile>(kTileRows / 16 * (kTileColumns / 32));
  float* sums = sum_room.room<float>(kTileRows * groups * 16);
  for (int64_t row = begin; row < end; row += kTileRows) {
    const int64_t last = row + kTileRows < end ? row + kTileRows : end;
    const int64_t strips = (last - row + 31) / 32;
    for (int64_t first = 0; first < w.columns; first += kTileColumns) {
      const int64_t until = first + kTileColumns < w.columns ? first + kTileColumns : w.columns;
      const int64_t span = (until - first + 31) / 32;
      for (int64_t r = 0; r < strips * 32; r++)
        Line::pack(w.row(row + r < w.rows ? row + r : w.rows - 1), first, until, (int)(r % 16),
                   panel + r / 16 * span);
      for (int64_t group = 0; group < groups; group += 2) {
        const Tile* tokens0 = packed + group * steps + first / 32;
        for (int64_t strip = 0; strip < strips; strip++)
          multiply_strip(panel + 2 * strip * span, span, tokens0, tokens0 + steps, span,
                         sums + (group / 2 * strips + strip) * 1024, first == 0);
      }
    }
    for (int64_t group = 0; group < groups; group += 2)
      for (int64_t strip = 0; strip < strips; strip++)
        for (int part = 0; part < 4; part++)
          write_tile(sums + (group / 2 * strips + strip) * 1024 + 256 * part, y,
                     (group + part % 2) * 16, tokens, row + 32 * strip + part / 2 * 16, last);
  }
  _tile_release();
}

}  // namespace GEMELO_ISA
