// The panel layout of every block format: sixteen rows interleaved, as BLIS packs a matrix for its
// micro-kernel, made from the file's rows once.
//
// A register of a panel holds four columns of each of sixteen rows, so that a dot product with one
// broadcast four needs no adding across lanes, scales come sixteen at a time, and memory is read in
// one stream from end to end. A unit is what 64 columns (256 in the K formats) of sixteen rows
// take: a head of scales, then runs of blocks whose quants share registers, each behind what scales
// it. Units are whole cache lines. The numbers are the file's own; only their places change (and a
// byte's sign, and six-bit scales become bytes).
//
//   kBlocks    32 columns each, in a unit; kRun of them make a run
//   line_type  of a line of a unit: fours of the rows, masks of their bits, or what scales them
//   quants     columns 4 four to 4 four + 3 of a run's block, as unsigned bytes: row r in lane r
//   scales     of a block's first or second sixteen columns; minima of all 32
//   interleave makes a unit of what sixteen rows, blocks as in the file, have of it
//
// A strip is the same part of all panels. Where most columns meet nothing but zeros, the
// strips of the others are all that has to be read. A line of fours makes four strips, for each of
// its bytes one: a column or two. So that a register is full again, four panels share a line of
// them, row r of panel k in byte k of lane r; and masks of bits likewise. Any line but one of fours
// makes two strips, of half of it each.

#pragma once

#include "gemm/blocks.h"
#include "runtime/scratch.h"
#include "simd/unroll.h"

namespace GEMELO_ISA {

using gemelo::Matrix;

constexpr int kPanelRows = 16;  // rows
constexpr int kLine = 64;       // bytes
constexpr int kHalf = kLine / 2, kQuarter = kLine / 4, kMask = 8;
constexpr int kStripPanels = 4;  // panels whose strips are interleaved

// One workspace a thread for all formats.
static thread_local gemelo::Scratch pair_room, packed_room, panel_room, sum_room;

enum class LineType { kScales, kMasks, kFours };

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
static inline void interleave_fours(Rows from, int at, int count, uint8_t* out,
                                    uint32_t flipped = 0) {
#ifdef GEMELO_AVX512
  if (count >= 8) return interleave_lines(from, at, count, out, flipped);
#endif
  for (int r = 0; r < kPanelRows; r++)
    for (int i = 0; i < count; i++) {
      uint32_t four;
      std::memcpy(&four, from[r] + at + 4 * i, 4);
      four ^= flipped;
      std::memcpy(out + kLine * i + 4 * r, &four, 4);
    }
}
// Two bytes of sixteen rows, side by side.
static inline void interleave_halves(Rows from, int at, uint8_t* out) {
  for (int r = 0; r < kPanelRows; r++) std::memcpy(out + 2 * r, from[r] + at, 2);
}
// Eight masks, of four bits a row: body(r) has the bits of row r, four for each mask.
template <class Body>
static inline void interleave_masks(uint8_t* out, const Body& body) {
  uint64_t masks[8] = {};
  for (int r = 0; r < kPanelRows; r++) {
    const uint32_t bits = body(r);
    for (int i = 0; i < 8; i++) masks[i] |= (uint64_t)(bits >> 4 * i & 15) << 4 * r;
  }
  std::memcpy(out, masks, sizeof masks);
}

// | 2 x 16 scales | 2 x 8 registers of bytes |
struct Q8_0Panel : Q8_0 {
  static constexpr int kBlocks = 2, kRun = 2, kUnit = 1088;
  static LineType line_type(int64_t line) { return line ? LineType::kFours : LineType::kScales; }
  template <class At>
  static B quants(const At& at, int, int block, int four) {
    return load_bytes(at.fours(64 * (1 + 8 * block + four)));
  }
  template <class At>
  static F scales(const At& at, int, int block, int) {
    return halves_at(at(32 * block));
  }

  static void interleave(Rows from, uint8_t* out) {
    for (int block = 0; block < 2; block++) {
      interleave_halves(from, 34 * block, out + 32 * block);
      interleave_fours(from, 34 * block + 2, 8, out + 64 * (1 + 8 * block), 0x80808080);
    }
  }
};

// | 2 x 16 scales | 2 x 4 registers of nibbles |
struct Q4_0Panel : Q4_0 {
  static constexpr int kBlocks = 2, kRun = 2, kUnit = 576;
  static LineType line_type(int64_t line) { return line ? LineType::kFours : LineType::kScales; }
  template <class At>
  static B quants(const At& at, int, int block, int four) {
    return nibbles_of_block(at, 64, block, four);
  }
  template <class At>
  static F scales(const At& at, int, int block, int) {
    return halves_at(at(32 * block));
  }

  static void interleave(Rows from, uint8_t* out) {
    for (int block = 0; block < 2; block++) {
      interleave_halves(from, 18 * block, out + 32 * block);
      interleave_fours(from, 18 * block + 2, 4, out + 64 + 256 * block);
    }
  }
};

// | 2 x 16 scales | 2 x 8 masks of fifth bits | 2 x 4 registers of nibbles |
struct Q5_0Panel : Q5_0 {
  static constexpr int kBlocks = 2, kRun = 2, kUnit = 704;
  static LineType line_type(int64_t line) {
    return line > 2 ? LineType::kFours : line ? LineType::kMasks : LineType::kScales;
  }
  template <class At>
  static B quants(const At& at, int, int block, int four) {
    const B fifth = bits_at(at.mask(64 + 8 * (8 * block + four)), 16);
    return either(nibbles_of_block(at, 192, block, four), fifth);
  }
  template <class At>
  static F scales(const At& at, int, int block, int) {
    return halves_at(at(32 * block));
  }

  static void interleave(Rows from, uint8_t* out) {
    for (int block = 0; block < 2; block++) {
      interleave_halves(from, 22 * block, out + 32 * block);
      interleave_masks(out + 64 + 64 * block, [&](int r) {
        uint32_t high;
        std::memcpy(&high, from[r] + 22 * block + 2, 4);
        return high;
      });
      interleave_fours(from, 22 * block + 6, 4, out + 192 + 256 * block);
    }
  }
};

// Q4_K and Q5_K: d and dmin at the head of a unit, and at the head of every run of two blocks,
// whose runs are `bytes` long, their scales and minima as bytes.
template <int bytes>
struct KQuantPanel {
  static constexpr int kWeights = 256, kNumScales = 1, kZero = 0, kBlocks = 8, kRun = 2;
  static constexpr bool kMinima = true;
  static int first(int run) { return 64 + bytes * run; }
  static LineType line_type(int64_t line) {
    constexpr int lines = bytes / kLine;
    const int64_t place = line ? (line - 1) % lines : 0;
    return !place ? LineType::kScales : place < lines - 8 ? LineType::kMasks : LineType::kFours;
  }
  template <class At>
  static F scales(const At& at, int run, int block, int) {
    return load_uint8(at(first(run) + 16 * block)) * halves_at(at(0));
  }
  template <class At>
  static F minima(const At& at, int run, int block) {
    return load_uint8(at(first(run) + 32 + 16 * block)) * halves_at(at(32));
  }

  static void interleave_scales(Rows from, uint8_t* out) {
    interleave_halves(from, 0, out);
    interleave_halves(from, 2, out + 32);
    for (int r = 0; r < kPanelRows; r++) {
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
struct Q4_KPanel : KQuantPanel<576> {
  static constexpr int kBytes = 144, kUnit = 2368;
  template <class At>
  static B quants(const At& at, int run, int block, int four) {
    return nibbles_of_pair(at, first(run) + 64, block, four);
  }

  static void interleave(Rows from, uint8_t* out) {
    interleave_scales(from, out);
    for (int run = 0; run < 4; run++)
      interleave_fours(from, 16 + 32 * run, 8, out + 128 + 576 * run);
  }
};

// The same with 2 x 8 masks of fifth bits before the nibbles.
struct Q5_KPanel : KQuantPanel<704> {
  static constexpr int kBytes = 176, kUnit = 2880;
  template <class At>
  static B quants(const At& at, int run, int block, int four) {
    const B fifth = bits_at(at.mask(first(run) + 64 + 8 * (8 * block + four)), 16);
    return either(nibbles_of_pair(at, first(run) + 192, block, four), fifth);
  }

  static void interleave(Rows from, uint8_t* out) {
    interleave_scales(from, out);
    for (int block = 0; block < 8; block++)
      interleave_masks(out + 128 + 704 * (block / 2) + 64 * (block % 2), [&](int r) {
        uint32_t bits = 0;
        for (int i = 0; i < 8; i++) {
          uint32_t four;
          std::memcpy(&four, from[r] + 16 + 4 * i, 4);
          four = four >> block & 0x01010101;
          bits |= (four * 0x01020408 >> 24 & 15) << 4 * i;  // one bit of each byte
        }
        return bits;
      });
    for (int run = 0; run < 4; run++)
      interleave_fours(from, 48 + 32 * run, 8, out + 256 + 704 * run);
  }
};

// | 16 d | and twice | 8 x 16 scales | 8 registers of nibbles | 8 of pairs of bits | 8 of nibbles |
struct Q6_KPanel {
  static constexpr int kWeights = 256, kBytes = 210, kNumScales = 2, kZero = 32;
  static constexpr int kBlocks = 8, kRun = 4, kUnit = 3392;
  static LineType line_type(int64_t line) {
    return line && (line - 1) % 26 > 1 ? LineType::kFours : LineType::kScales;
  }
  static constexpr bool kMinima = false;
  template <class At>
  static B quants(const At& at, int run, int block, int four) {
    const int first = 192 + 1664 * run + 64 * four;
    const B x = load_bytes(at.fours(first + 1024 * (block % 2)));
    const B low = block < 2 ? low_nibbles(x) : high_nibbles(x);
    return either(low, bits_4_and_5(load_bytes(at.fours(first + 512)), 4 - 2 * block));
  }
  template <class At>
  static F scales(const At& at, int run, int block, int half) {
    const F d = halves_at(at(0));
    return fma(load_uint8(at(64 + 1664 * run + 16 * (2 * block + half))), d, d * set(-128));
  }

  static void interleave(Rows from, uint8_t* out) {
    interleave_halves(from, 208, out);
    for (int run = 0; run < 2; run++) {
      uint8_t* at = out + 64 + 1664 * run;
      for (int i = 0; i < 8; i++)
        for (int r = 0; r < kPanelRows; r++) at[16 * i + r] = from[r][192 + 8 * run + i] ^ 0x80;
      interleave_fours(from, 64 * run, 8, at + 128);
      interleave_fours(from, 128 + 32 * run, 8, at + 640);
      interleave_fours(from, 64 * run + 32, 8, at + 1152);
    }
  }
};

template <class Body>
static inline void with_panels(gemelo::Format format, const Body& body) {
  switch (format) {
    case gemelo::kQ4_0: return body(std::type_identity<Q4_0Panel>{});
    case gemelo::kQ5_0: return body(std::type_identity<Q5_0Panel>{});
    case gemelo::kQ8_0: return body(std::type_identity<Q8_0Panel>{});
    case gemelo::kQ4_K: return body(std::type_identity<Q4_KPanel>{});
    case gemelo::kQ5_K: return body(std::type_identity<Q5_KPanel>{});
    case gemelo::kQ6_K: return body(std::type_identity<Q6_KPanel>{});
    default: return;
  }
}

}  // namespace GEMELO_ISA
