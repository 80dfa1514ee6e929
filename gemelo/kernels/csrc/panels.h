// The block formats again, sixteen rows side by side: a panel, made from the file's rows once.
//
// A register of a panel holds four columns of each of sixteen rows, so that a dot product with one
// broadcast four needs no adding across lanes, scales come sixteen at a time, and memory is read in
// one stream from end to end. A unit is what 64 columns (256 in the K formats) of sixteen rows
// take: a head of scales, then runs of blocks whose quants share registers, each behind what scales
// it. Units are whole cache lines. The numbers are the file's own; only their places change (and a
// byte's sign, and six-bit scales become bytes).
//
//   kBlocks    32 columns each, in a unit; kRun of them make a run
//   kind       of a line of a unit: fours of the rows, masks of their bits, or what scales them
//   quants     columns 4 four to 4 four + 3 of a run's block, as unsigned bytes: row r in lane r
//   levels     of a block's first or second sixteen columns; offsets of all 32
//   lay        makes a unit of what sixteen rows, blocks as in the file, have of it
//
// A strip is the same part of all panels. Where most columns meet nothing but zeros, the strips of
// the others are all that has to be read. A line of fours makes four strips, for each of its bytes
// one: a column or two. So that a register is full again, four panels share a line of them, row r
// of panel k in byte k of lane r; and masks of bits likewise. Any line but one of fours makes two
// strips, of half of it each.

#pragma once

#include "blocks.h"
#include "scratch.h"
#include "unroll.h"

namespace GEMELO_ISA {

using gemelo::Matrix;

constexpr int kPanel = 16;  // rows
constexpr int kLine = 64;   // bytes
constexpr int kHalf = kLine / 2, kQuarter = kLine / 4, kMask = 8;
constexpr int kTogether = 4;  // panels whose strips are interleaved

// One workspace a thread for all formats.
static thread_local gemelo::Scratch pair_room, packed_room, panel_room, sum_room;

enum Kind { kScales, kMasks, kFours };

// Where the bytes of a unit lie that have an offset in its drawing: one behind the other, or in
// strips, of which a line of all panels takes `stride` bytes. Out of strips, fours and their masks
// are `byte` of the fours of four panels, from `panel` on.
struct InPanel {
  const uint8_t* p;
  const uint8_t* operator()(int64_t offset) const { return p + offset; }
  const uint8_t* mask(int64_t offset) const { return p + offset; }
  const uint8_t* fours(int64_t offset) const { return p + offset; }
};
struct InStrips {
  const uint8_t* p;
  int64_t stride, panel;
  int byte;

  const uint8_t* half(int64_t offset) const {
    return p + offset / kLine * stride + offset % kLine / kHalf * (stride / 2) + panel * kHalf;
  }
  const uint8_t* operator()(int64_t offset) const { return half(offset) + offset % kHalf; }
  const uint8_t* mask(int64_t offset) const {
    return half(offset) + (offset % kHalf / kMask * 4 + byte) * kMask;
  }
  const uint8_t* fours(int64_t offset) const {
    return p + offset / kLine * stride + byte * (stride / 4) + panel * kQuarter;
  }
};

static inline B bits_at(const uint8_t* mask, uint8_t value) {
  uint64_t bits;
  std::memcpy(&bits, mask, 8);
  return where(bits, value);
}
static inline F halves_at(const uint8_t* p) { return load_half((const uint16_t*)p); }

// A block's nibbles 0 to 15 low, 16 to 31 high; or those of one block low, of the next high.
template <class At>
static inline B nibbles_of_block(const At& at, int first, int block, int four) {
  const B x = load_bytes(at.fours(first + 64 * (4 * block + four % 4)));
  return four < 4 ? low_nibbles(x) : high_nibbles(x);
}
template <class At>
static inline B nibbles_of_pair(const At& at, int first, int block, int four) {
  const B x = load_bytes(at.fours(first + 64 * four));
  return block ? high_nibbles(x) : low_nibbles(x);
}
// Bytes `at` of sixteen rows, `count` fours of each, to as many lines.
static inline void lay_fours(Rows from, int at, int count, uint8_t* out, uint32_t flipped = 0) {
#ifdef GEMELO_AVX512
  if (count >= 8) return lay_lines(from, at, count, out, flipped);
#endif
  for (int r = 0; r < kPanel; r++)
    for (int i = 0; i < count; i++) {
      uint32_t four;
      std::memcpy(&four, from[r] + at + 4 * i, 4);
      four ^= flipped;
      std::memcpy(out + kLine * i + 4 * r, &four, 4);
    }
}
// Two bytes of sixteen rows, side by side.
static inline void lay_halves(Rows from, int at, uint8_t* out) {
  for (int r = 0; r < kPanel; r++) std::memcpy(out + 2 * r, from[r] + at, 2);
}
// Eight masks, of four bits a row: body(r) has the bits of row r, four for each mask.
template <class Body>
static inline void lay_masks(uint8_t* out, const Body& body) {
  uint64_t masks[8] = {};
  for (int r = 0; r < kPanel; r++) {
    const uint32_t bits = body(r);
    for (int i = 0; i < 8; i++) masks[i] |= (uint64_t)(bits >> 4 * i & 15) << 4 * r;
  }
  std::memcpy(out, masks, sizeof masks);
}

// | 2 x 16 scales | 2 x 8 registers of bytes |
struct Q8_0Panel : Q8_0 {
  static constexpr int kBlocks = 2, kRun = 2, kUnit = 1088;
  static Kind kind(int64_t line) { return line ? kFours : kScales; }
  template <class At>
  static B quants(const At& at, int, int block, int four) {
    return load_bytes(at.fours(64 * (1 + 8 * block + four)));
  }
  template <class At>
  static F levels(const At& at, int, int block, int) {
    return halves_at(at(32 * block));
  }

  static void lay(Rows from, uint8_t* out) {
    for (int block = 0; block < 2; block++) {
      lay_halves(from, 34 * block, out + 32 * block);
      lay_fours(from, 34 * block + 2, 8, out + 64 * (1 + 8 * block), 0x80808080);
    }
  }
};

// | 2 x 16 scales | 2 x 4 registers of nibbles |
struct Q4_0Panel : Q4_0 {
  static constexpr int kBlocks = 2, kRun = 2, kUnit = 576;
  static Kind kind(int64_t line) { return line ? kFours : kScales; }
  template <class At>
  static B quants(const At& at, int, int block, int four) {
    return nibbles_of_block(at, 64, block, four);
  }
  template <class At>
  static F levels(const At& at, int, int block, int) {
    return halves_at(at(32 * block));
  }

  static void lay(Rows from, uint8_t* out) {
    for (int block = 0; block < 2; block++) {
      lay_halves(from, 18 * block, out + 32 * block);
      lay_fours(from, 18 * block + 2, 4, out + 64 + 256 * block);
    }
  }
};

// | 2 x 16 scales | 2 x 8 masks of fifth bits | 2 x 4 registers of nibbles |
struct Q5_0Panel : Q5_0 {
  static constexpr int kBlocks = 2, kRun = 2, kUnit = 704;
  static Kind kind(int64_t line) { return line > 2 ? kFours : line ? kMasks : kScales; }
  template <class At>
  static B quants(const At& at, int, int block, int four) {
    const B fifth = bits_at(at.mask(64 + 8 * (8 * block + four)), 16);
    return either(nibbles_of_block(at, 192, block, four), fifth);
  }
  template <class At>
  static F levels(const At& at, int, int block, int) {
    return halves_at(at(32 * block));
  }

  static void lay(Rows from, uint8_t* out) {
    for (int block = 0; block < 2; block++) {
      lay_halves(from, 22 * block, out + 32 * block);
      lay_masks(out + 64 + 64 * block, [&](int r) {
        uint32_t high;
        std::memcpy(&high, from[r] + 22 * block + 2, 4);
        return high;
      });
      lay_fours(from, 22 * block + 6, 4, out + 192 + 256 * block);
    }
  }
};

// Q4_K and Q5_K: d and dmin at the head of a unit, and at the head of every run of two blocks,
// whose runs are `bytes` long, their scales and minima as bytes.
template <int bytes>
struct Minima {
  static constexpr int kWeights = 256, kLevels = 1, kZero = 0, kBlocks = 8, kRun = 2;
  static constexpr bool kMinima = true;
  static int first(int run) { return 64 + bytes * run; }
  static Kind kind(int64_t line) {
    constexpr int lines = bytes / kLine;
    const int64_t place = line ? (line - 1) % lines : 0;
    return !place ? kScales : place < lines - 8 ? kMasks : kFours;
  }
  template <class At>
  static F levels(const At& at, int run, int block, int) {
    return sixteen_bytes(at(first(run) + 16 * block)) * halves_at(at(0));
  }
  template <class At>
  static F offsets(const At& at, int run, int block) {
    return sixteen_bytes(at(first(run) + 32 + 16 * block)) * halves_at(at(32));
  }

  static void lay_scales(Rows from, uint8_t* out) {
    lay_halves(from, 0, out);
    lay_halves(from, 2, out + 32);
    for (int r = 0; r < kPanel; r++) {
      const SixBits six(from[r]);
      for (int i = 0; i < 8; i++) {
        uint8_t* scales = out + 64 + bytes * (i / 2) + 16 * (i % 2) + r;
        scales[0] = six.scale[i];
        scales[32] = six.minimum[i];
      }
    }
  }
};

// | 16 d | 16 dmin | and four times | 2 x 16 scales | 2 x 16 minima | 8 registers of nibbles |
struct Q4_KPanel : Minima<576> {
  static constexpr int kBytes = 144, kUnit = 2368;
  template <class At>
  static B quants(const At& at, int run, int block, int four) {
    return nibbles_of_pair(at, first(run) + 64, block, four);
  }

  static void lay(Rows from, uint8_t* out) {
    lay_scales(from, out);
    for (int run = 0; run < 4; run++) lay_fours(from, 16 + 32 * run, 8, out + 128 + 576 * run);
  }
};

// The same with 2 x 8 masks of fifth bits before the nibbles.
struct Q5_KPanel : Minima<704> {
  static constexpr int kBytes = 176, kUnit = 2880;
  template <class At>
  static B quants(const At& at, int run, int block, int four) {
    const B fifth = bits_at(at.mask(first(run) + 64 + 8 * (8 * block + four)), 16);
    return either(nibbles_of_pair(at, first(run) + 192, block, four), fifth);
  }

  static void lay(Rows from, uint8_t* out) {
    lay_scales(from, out);
    for (int block = 0; block < 8; block++)
      lay_masks(out + 128 + 704 * (block / 2) + 64 * (block % 2), [&](int r) {
        uint32_t bits = 0;
        for (int i = 0; i < 8; i++) {
          uint32_t four;
          std::memcpy(&four, from[r] + 16 + 4 * i, 4);
          four = four >> block & 0x01010101;
          bits |= (four * 0x01020408 >> 24 & 15) << 4 * i;  // one bit of each byte
        }
        return bits;
      });
    for (int run = 0; run < 4; run++) lay_fours(from, 48 + 32 * run, 8, out + 256 + 704 * run);
  }
};

// | 16 d | and twice | 8 x 16 scales | 8 registers of nibbles | 8 of pairs of bits | 8 of nibbles |
struct Q6_KPanel {
  static constexpr int kWeights = 256, kBytes = 210, kLevels = 2, kZero = 32;
  static constexpr int kBlocks = 8, kRun = 4, kUnit = 3392;
  static Kind kind(int64_t line) { return line && (line - 1) % 26 > 1 ? kFours : kScales; }
  static constexpr bool kMinima = false;
  template <class At>
  static B quants(const At& at, int run, int block, int four) {
    const int first = 192 + 1664 * run + 64 * four;
    const B x = load_bytes(at.fours(first + 1024 * (block % 2)));
    const B low = block < 2 ? low_nibbles(x) : high_nibbles(x);
    return either(low, bits_4_and_5(load_bytes(at.fours(first + 512)), 4 - 2 * block));
  }
  template <class At>
  static F levels(const At& at, int run, int block, int half) {
    const F d = halves_at(at(0));
    return fma(sixteen_bytes(at(64 + 1664 * run + 16 * (2 * block + half))), d, d * set(-128));
  }

  static void lay(Rows from, uint8_t* out) {
    lay_halves(from, 208, out);
    for (int run = 0; run < 2; run++) {
      uint8_t* at = out + 64 + 1664 * run;
      for (int i = 0; i < 8; i++)
        for (int r = 0; r < kPanel; r++) at[16 * i + r] = from[r][192 + 8 * run + i] ^ 0x80;
      lay_fours(from, 64 * run, 8, at + 128);
      lay_fours(from, 128 + 32 * run, 8, at + 640);
      lay_fours(from, 64 * run + 32, 8, at + 1152);
    }
  }
};

template <class Body>
static inline void with_panels(int format, const Body& body) {
  switch (format) {
    case gemelo::kQ4_0: return body(Type<Q4_0Panel>{});
    case gemelo::kQ5_0: return body(Type<Q5_0Panel>{});
    case gemelo::kQ8_0: return body(Type<Q8_0Panel>{});
    case gemelo::kQ4_K: return body(Type<Q4_KPanel>{});
    case gemelo::kQ5_K: return body(Type<Q5_KPanel>{});
    case gemelo::kQ6_K: return body(Type<Q6_KPanel>{});
  }
}

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

// 4 x 4 fields of so many bits, all over the words: out[j] has in i what in[i] has in j.
template <int bits>
static inline void turn_fields(Words8 x[4]) {
  constexpr uint64_t ones = ~uint64_t{0} / ((1 << bits) + 1);  // every other field
  constexpr uint64_t twos = ~uint64_t{0} / ((1 << 2 * bits) + 1);
  const auto swap = [x](int i, int j, int by, uint64_t low) {
    for (int w = 0; w < 8; w++) {
      const uint64_t a = x[i][w], b = x[j][w];
      x[i][w] = (a & low) | (b & low) << by;
      x[j][w] = (a >> by & low) | (b & ~low);
    }
  };
  swap(0, 2, 2 * bits, twos);
  swap(1, 3, 2 * bits, twos);
  swap(0, 1, bits, ones);
  swap(2, 3, bits, ones);
}
static inline void turn(Kind kind, Words8 x[4]) {
  if (kind == kFours) turn_fields<8>(x);
  else turn_fields<1>(x);
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
    turn(kind, x);
    words_in_strips(strips, kind, at, [&](int byte, int i, const uint8_t* p, int bytes) {
      std::memcpy((uint8_t*)p, x[byte] + i, bytes);
    });
  }
}
// What `turn` gives for the k-th alone.
template <int bits>
static inline void take_fields(const Words8 x[4], int k, uint64_t* out) {
  constexpr uint64_t field = ~uint64_t{0} / ((uint64_t{1} << 4 * bits) - 1) * ((1 << bits) - 1);
  for (int w = 0; w < 8; w++) {
    uint64_t all = 0;
    for (int i = 0; i < 4; i++) all |= (x[i][w] >> k * bits & field) << i * bits;
    out[w] = all;
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
    if (kind == kFours) take_fields<8>(x, which, out);
    else take_fields<1>(x, which, out);
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
