// Panels and strips out of rows, and back: made once when a model is loaded, and a unit at a time
// wherever somebody wants panels of what lies otherwise.
//
// What a unit holds is the formats' own (panels.h); here is where it goes. Only places change, so
// that a row that is gathered out of panels or strips is the file's to the bit.

#pragma once

#include "gemm/panels.h"

namespace GEMELO_ISA {

template <class P>
static inline int64_t units_of(int64_t columns) {
  return (columns + P::kWeights - 1) / P::kWeights;
}

// Units [first, last) of the sixteen rows from `row` on, out of rows; those past the end repeat the
// last.
template <class P>
static inline void lay_rows(const Matrix& w, int64_t row, int64_t first, int64_t last,
                            uint8_t* out) {
  for (int64_t unit = first; unit < last; unit++, out += P::kUnit) {
    const int64_t there = w.columns - unit * P::kWeights;
    const uint8_t* from[kPanel];
    for (int r = 0; r < kPanel; r++)
      from[r] = w.row(row + r < w.rows ? row + r : w.rows - 1) + unit * P::kBytes;
    if (there >= P::kWeights) {
      P::lay(from, out);
      continue;
    }
    uint8_t whole[kPanel][P::kBytes] = {};
    for (int r = 0; r < kPanel; r++) {
      std::memcpy(whole[r], from[r], (size_t)P::kBytes * there / P::kWeights);
      from[r] = whole[r];
    }
    P::lay(from, out);
  }
}

// The strips of a unit, as the panels from `panel` on have them.
template <class P>
static inline InStrips unit_in_strips(const Matrix& w, int64_t panel, int64_t unit) {
  return {w.blocks + unit * (P::kUnit / kLine) * w.stride, w.stride, panel, 0};
}

// What a line of fours or masks holds, of each of four: eight words.
using Words8 = uint64_t[8];

// The k-th fields, of so many bits, of four side by side; all over the words.
template <int bits>
static inline void fields(const Words8 x[4], int k, uint64_t* out) {
  constexpr uint64_t field = ~uint64_t{0} / ((uint64_t{1} << 4 * bits) - 1) * ((1 << bits) - 1);
  for (int w = 0; w < 8; w++) {
    uint64_t all = 0;
    for (int i = 0; i < 4; i++) all |= (x[i][w] >> k * bits & field) << i * bits;
    out[w] = all;
  }
}
// What a line of fours or masks becomes: of four panels the k-th strip, of four strips the k-th
// panel.
static inline void turned(Kind kind, const Words8 x[4], int k, uint64_t* out) {
  if (kind == kFours) fields<8>(x, k, out);
  else fields<1>(x, k, out);
}
// body(byte, i, where, bytes): where a line's words lie in strips, from the i-th on as many as lie
// together, for every byte of its fours.
template <class Body>
static inline void words_in_strips(InStrips at, Kind kind, int64_t offset, const Body& body) {
  at.panel = at.panel / kTogether * kTogether;
  for (at.byte = 0; at.byte < 4; at.byte++) {
    if (kind == kFours) body(at.byte, 0, at.fours(offset), kLine);
    else
      for (int i = 0; i < 8; i++) body(at.byte, i, at.mask(offset + i * kMask), kMask);
  }
}

// A unit of four panels, `apart` bytes from one to the next, into strips.
template <class P>
static inline void put_in_strips(const uint8_t* laid, int64_t apart, const InStrips& strips) {
  for (int64_t at = 0; at < P::kUnit; at += kLine, laid += kLine) {
    const Kind kind = P::kind(at / kLine);
    if (kind == kScales) {
      for (int64_t half = 0; half < kLine; half += kHalf)
        for (int i = 0; i < kTogether; i++)
          std::memcpy((uint8_t*)strips.half(at + half) + i * kHalf, laid + i * apart + half, kHalf);
      continue;
    }
    Words8 x[4];
    for (int i = 0; i < 4; i++) std::memcpy(x[i], laid + i * apart, kLine);
    Words8 out[4];
    for (int byte = 0; byte < 4; byte++) turned(kind, x, byte, out[byte]);
    words_in_strips(strips, kind, at, [&](int byte, int i, const uint8_t* p, int bytes) {
      std::memcpy((uint8_t*)p, out[byte] + i, bytes);
    });
  }
}
// A unit of one panel out of strips.
template <class P>
static inline void take_from_strips(const InStrips& strips, uint8_t* laid) {
  const int which = strips.panel % kTogether;
  for (int64_t at = 0; at < P::kUnit; at += kLine, laid += kLine) {
    const Kind kind = P::kind(at / kLine);
    if (kind == kScales) {
      for (int half = 0; half < kLine; half += kHalf)
        std::memcpy(laid + half, strips.half(at + half), kHalf);
      continue;
    }
    Words8 x[4], out;
    words_in_strips(strips, kind, at, [&](int byte, int i, const uint8_t* p, int bytes) {
      std::memcpy(x[byte] + i, p, bytes);
    });
    turned(kind, x, which, out);
    std::memcpy(laid, out, kLine);
  }
}

// Rows [begin, end) as panels, from the one that holds `begin` on, which is the `first`th and more
// of its matrix; as strips, when lines of all panels take `stride` bytes.
template <class P>
static void interleave_rows(const Matrix& rows, int64_t begin, int64_t end, int64_t first,
                            int64_t stride, uint8_t* out) {
  const int64_t units = units_of<P>(rows.columns), bytes = units * P::kUnit;
  const int64_t together = stride ? kTogether : 1;
  auto* laid = panel_room.room<uint8_t>(stride ? together * bytes : 0);
  for (int64_t row = begin; row < end; row += together * kPanel) {
    const int64_t panel = first + row / kPanel;
    if (!stride) {
      lay_rows<P>(rows, row, 0, units, out + panel * bytes);
      continue;
    }
    for (int64_t i = 0; i < together; i++)
      lay_rows<P>(rows, row + i * kPanel, 0, units, laid + i * bytes);
    for (int64_t unit = 0; unit < units; unit++)
      put_in_strips<P>(laid + unit * P::kUnit, bytes,
                       {out + unit * (P::kUnit / kLine) * stride, stride, panel, 0});
  }
}

// The units from `first` on of the panel that row `row` begins: where they are stored, or laid into
// `room` until `last`.
template <class P>
static inline const uint8_t* units_at(const Matrix& w, int64_t row, int64_t first, int64_t last,
                                      uint8_t* room) {
  const int64_t panel = (row < w.rows ? row : w.rows - 1) / kPanel;
  if (w.layout == gemelo::kPanels) return w.blocks + panel * w.stride + first * P::kUnit;
  if (w.layout == gemelo::kRows) lay_rows<P>(w, row, first, last, room);
  else
    for (int64_t unit = first; unit < last; unit++)
      take_from_strips<P>(unit_in_strips<P>(w, panel, unit), room + (unit - first) * P::kUnit);
  return room;
}

// One row out of a panel, exactly what the format defines.
template <class P>
static inline void gather_row(const Matrix& w, int64_t row, const Activations& y, int64_t place) {
  const int lane = row % kPanel;
  for (int64_t at = 0; at < w.columns; at += 32) {
    alignas(64) uint8_t room[P::kUnit];
    const int64_t number = at / P::kWeights;
    const InPanel unit{units_at<P>(w, row, number, number + 1, room)};
    const int run = at % P::kWeights / 32 / P::kRun, block = at / 32 % P::kRun;
    float values[32];
    for (int four = 0; four < 8; four++) {
      uint8_t bytes[64];
      float levels[16], offsets[16];
      store(bytes, P::quants(unit, run, block, four));
      store(levels, P::levels(unit, run, block, four / 4));
      if constexpr (P::kMinima) store(offsets, P::offsets(unit, run, block));
      else store(offsets, set(P::kZero) * P::levels(unit, run, block, four / 4));
      for (int i = 0; i < 4; i++)
        values[4 * four + i] = std::fma((float)bytes[4 * lane + i], levels[lane], -offsets[lane]);
    }
    store16(y, place, at, load(values));
    store16(y, place, at + 16, load(values + 16));
  }
}

}  // namespace GEMELO_ISA
