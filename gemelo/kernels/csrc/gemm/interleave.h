// Packing weights: panels and strips out of rows, and back; once when a model is loaded, and a unit
// at a time wherever somebody wants panels of what lies otherwise.
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
static inline void interleave_units(const Matrix& w, int64_t row, int64_t first, int64_t last,
                                    uint8_t* out) {
  for (int64_t unit = first; unit < last; unit++, out += P::kUnit) {
    const int64_t there = w.columns - unit * P::kWeights;
    const uint8_t* from[kPanelRows];
    for (int r = 0; r < kPanelRows; r++)
      from[r] = w.row(row + r < w.rows ? row + r : w.rows - 1) + unit * P::kBytes;
    if (there >= P::kWeights) {
      P::interleave(from, out);
      continue;
    }
    uint8_t whole[kPanelRows][P::kBytes] = {};
    for (int r = 0; r < kPanelRows; r++) {
      std::memcpy(whole[r], from[r], (size_t)P::kBytes * there / P::kWeights);
      from[r] = whole[r];
    }
    P::interleave(from, out);
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
static inline void transposed(LineType type, const Words8 x[4], int k, uint64_t* out) {
  if (type == LineType::kFours) fields<8>(x, k, out);
  else fields<1>(x, k, out);
}
// body(byte, i, where, bytes): where a line's words lie in strips, from the i-th on as many as lie
// together, for every byte of its fours.
template <class Body>
static inline void words_in_strips(InStrips at, LineType type, int64_t offset, const Body& body) {
  at.panel = at.panel / kStripPanels * kStripPanels;
  for (at.byte = 0; at.byte < 4; at.byte++) {
    if (type == LineType::kFours) body(at.byte, 0, at.fours(offset), kLine);
    else
      for (int i = 0; i < 8; i++) body(at.byte, i, at.mask(offset + i * kMask), kMask);
  }
}

// A unit of four panels, `apart` bytes from one to the next, into strips.
template <class P>
static inline void put_in_strips(const uint8_t* interleaved, int64_t apart,
                                 const InStrips& strips) {
  for (int64_t at = 0; at < P::kUnit; at += kLine, interleaved += kLine) {
    const LineType type = P::line_type(at / kLine);
    if (type == LineType::kScales) {
      for (int64_t half = 0; half < kLine; half += kHalf)
        for (int i = 0; i < kStripPanels; i++)
          std::memcpy((uint8_t*)strips.half(at + half) + i * kHalf, interleaved + i * apart + half,
                      kHalf);
      continue;
    }
    Words8 x[4];
    for (int i = 0; i < 4; i++) std::memcpy(x[i], interleaved + i * apart, kLine);
    Words8 out[4];
    for (int byte = 0; byte < 4; byte++) transposed(type, x, byte, out[byte]);
    words_in_strips(strips, type, at, [&](int byte, int i, const uint8_t* p, int bytes) {
      std::memcpy((uint8_t*)p, out[byte] + i, bytes);
    });
  }
}
// A unit of one panel out of strips.
template <class P>
static inline void take_from_strips(const InStrips& strips, uint8_t* interleaved) {
  const int which = strips.panel % kStripPanels;
  for (int64_t at = 0; at < P::kUnit; at += kLine, interleaved += kLine) {
    const LineType type = P::line_type(at / kLine);
    if (type == LineType::kScales) {
      for (int half = 0; half < kLine; half += kHalf)
        std::memcpy(interleaved + half, strips.half(at + half), kHalf);
      continue;
    }
    Words8 x[4], out;
    words_in_strips(strips, type, at, [&](int byte, int i, const uint8_t* p, int bytes) {
      std::memcpy(x[byte] + i, p, bytes);
    });
    transposed(type, x, which, out);
    std::memcpy(interleaved, out, kLine);
  }
}

// Rows [begin, end) as panels, from the one that holds `begin` on, which is the `first`th and more
// of its matrix; as strips, when lines of all panels take `stride` bytes.
template <class P>
static void interleave_rows(const Matrix& rows, int64_t begin, int64_t end, int64_t first,
                            int64_t stride, uint8_t* out) {
  const int64_t units = units_of<P>(rows.columns), bytes = units * P::kUnit;
  const int64_t together = stride ? kStripPanels : 1;
  auto* interleaved = panel_room.room<uint8_t>(stride ? together * bytes : 0);
  for (int64_t row = begin; row < end; row += together * kPanelRows) {
    const int64_t panel = first + row / kPanelRows;
    if (!stride) {
      interleave_units<P>(rows, row, 0, units, out + panel * bytes);
      continue;
    }
    for (int64_t i = 0; i < together; i++)
      interleave_units<P>(rows, row + i * kPanelRows, 0, units, interleaved + i * bytes);
    for (int64_t unit = 0; unit < units; unit++)
      put_in_strips<P>(interleaved + unit * P::kUnit, bytes,
                       {out + unit * (P::kUnit / kLine) * stride, stride, panel, 0});
  }
}

// The units from `first` on of the panel that row `row` begins: where they are stored, or
// interleaved into `room` until `last`.
template <class P>
static inline const uint8_t* units_at(const Matrix& w, int64_t row, int64_t first, int64_t last,
                                      uint8_t* room) {
  const int64_t panel = (row < w.rows ? row : w.rows - 1) / kPanelRows;
  if (w.layout == gemelo::Layout::kPanels) return w.blocks + panel * w.stride + first * P::kUnit;
  if (gemelo::in_rows(w.layout)) interleave_units<P>(w, row, first, last, room);
  else
    for (int64_t unit = first; unit < last; unit++)
      take_from_strips<P>(unit_in_strips<P>(w, panel, unit), room + (unit - first) * P::kUnit);
  return room;
}

// One row out of a panel, exactly what the format defines.
template <class P>
static inline void gather_row(const Matrix& w, int64_t row, const Activations& y, int64_t place) {
  const int lane = row % kPanelRows;
  for (int64_t at = 0; at < w.columns; at += 32) {
    alignas(64) uint8_t room[P::kUnit];
    const int64_t number = at / P::kWeights;
    const InPanel unit{units_at<P>(w, row, number, number + 1, room)};
    const int run = at % P::kWeights / 32 / P::kRun, block = at / 32 % P::kRun;
    float values[32];
    for (int four = 0; four < 8; four++) {
      uint8_t bytes[64];
      float scales[16], minima[16];
      store(bytes, P::quants(unit, run, block, four));
      store(scales, P::scales(unit, run, block, four / 4));
      if constexpr (P::kMinima) store(minima, P::minima(unit, run, block));
      else store(minima, set(P::kZero) * P::scales(unit, run, block, four / 4));
      for (int i = 0; i < 4; i++)
        values[4 * four + i] = std::fma((float)bytes[4 * lane + i], scales[lane], -minima[lane]);
    }
    store16(y, place, at, load(values));
    store16(y, place, at + 16, load(values + 16));
  }
}

}  // namespace GEMELO_ISA
