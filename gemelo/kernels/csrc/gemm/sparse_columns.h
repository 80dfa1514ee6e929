// GEMV that skips columns: of a matrix in strips only those are read that meet anything but zeros.
//
// Gemma 3n's sparse layers wake one neuron in twenty, so that a token needs a twentieth of the
// columns of what follows. As strips a column lies together with at most one other (panels.h),
// thousands of bytes that are worth going to. A token's plan lists its live columns, block by
// block, and the strips that hold them. Its sums are those of panels to the bit, since what is left
// out would add zeros. Which bytes a format's decoder reads is learnt by running the decoder itself
// on a recorder instead of memory (TouchRecorder).

#pragma once

#include <algorithm>

#include "gemm/panel_gemm.h"

namespace GEMELO_ISA {

constexpr int64_t kBlocksAhead = 12;               // whose strips are fetched beforehand
constexpr int64_t kBlocksAtOnce = 16;              // whose strips stay near for all tokens
constexpr int kGroups = kMicroTokens > 4 ? 4 : 1;  // of panels whose sums registers hold

static thread_local gemelo::Scratch block_room, column_room, strip_room;

// A block by its number, how many columns of it are alive, and how many lines of memory are to be
// read up to its last.
struct LiveBlock {
  int32_t block, columns, lines;
};

// A part of the strips that a thread reads.
struct Stretch {
  const uint8_t* begin;
  int32_t lines;
};

// The blocks of which a token meets something, and what has to be read for them, each once.
struct Plan {
  LiveBlock *next, *last;
  uint8_t *column, *last_column;  // of the next block: which of its 32 are alive
  Stretch *fetched, *last_stretch;
  int32_t lines = 0, fetched_lines = 0;

  Plan() = default;
  Plan(LiveBlock* blocks, uint8_t* columns, Stretch* stretches)
      : next(blocks),
        last(blocks),
        column(columns),
        last_column(columns),
        fetched(stretches),
        last_stretch(stretches) {}

  // Asks for lines until so many have been asked for, `most` of them now.
  void prefetch(int32_t until, int32_t most) {
    for (most = std::min(most, until - fetched_lines); most > 0;) {
      const int32_t lines = std::min(most, fetched->lines);
      const uint8_t* p = fetched->begin;
      for (const uint8_t* end = p + lines * kLine; p < end; p += kLine) __builtin_prefetch(p, 0, 2);
      fetched->begin = p;
      fetched_lines += lines;
      most -= lines;
      if (!(fetched->lines -= lines)) fetched++;
    }
  }
};

// Notes the strips of a unit instead of reading them, each once.
struct TouchRecorder {
  const InStrips& unit;
  int64_t panels;
  uint8_t* known;  // of every line: two bits for its halves, four for its quarters
  Plan& plan;

  const uint8_t* record(int64_t line, int bit, const uint8_t* strip, int64_t bytes) const {
    alignas(kLine) static const uint8_t nothing[kLine] = {};
    if (known[line] >> bit & 1) return nothing;
    known[line] |= 1 << bit;
    const auto lines = (int32_t)((bytes + (uintptr_t)strip % kLine + kLine - 1) / kLine);
    *plan.last_stretch++ = {strip, lines};
    plan.lines += lines;
    return nothing;
  }
  const uint8_t* operator()(int64_t offset) const {
    return record(offset / kLine, offset % kLine / kHalf, unit.half(offset), panels * kHalf);
  }
  const uint8_t* mask(int64_t offset) const { return (*this)(offset); }
  const uint8_t* fours(int64_t offset) const {
    return record(offset / kLine, 2 + unit.byte, unit.fours(offset), panels * kQuarter);
  }
};

// Makes the plan of a packed token for `panels` panels from `panel` on. A broken scale counts, so
// that it shows.
template <class P>
static void plan(const TokenBlock<1>* packed, const Matrix& w, int64_t panel, int64_t panels,
                 Plan& out) {
  const int64_t blocks = units_of<P>(w.columns) * P::kBlocks;
  uint8_t known[P::kUnit / kLine];
  for (int64_t b = 0; b < blocks; b++) {
    const TokenBlock<1>& x = packed[b];
    const int64_t unit = b / P::kBlocks;
    const int run = b % P::kBlocks / P::kRun, block = b % P::kRun;
    if (b % P::kBlocks == 0) std::memset(known, 0, sizeof known);
    InStrips from = unit_in_strips<P>(w, panel, unit);
    const TouchRecorder recorder{from, panels, known, out};
    const uint8_t* first = out.last_column;
    for (int at = 0; at < 32; at += 8) {
      uint64_t alive;
      std::memcpy(&alive, (const uint8_t*)x.fours + at, 8);
      for (; alive; alive &= ~(uint64_t{255} << __builtin_ctzll(alive) / 8 * 8)) {
        const int column = at + __builtin_ctzll(alive) / 8;
        *out.last_column++ = (uint8_t)column;
        from.byte = column % 4;
        (void)P::quants(recorder, run, block, column / 4);
      }
    }
    if (out.last_column == first && std::isfinite(x.scale[0])) continue;
    for (int half = 0; half < P::kNumScales; half++) (void)P::scales(recorder, run, block, half);
    if constexpr (P::kMinima) (void)P::minima(recorder, run, block);
    *out.last++ = {(int32_t)b, (int32_t)(out.last_column - first), out.lines};
  }
}

// sums[panel][row] += the live columns of a block, for N groups of panels from that of `at` on.
template <class P, int N>
static inline void add_columns(InStrips at, int run, int block, const uint8_t* column,
                               const uint8_t* last, const TokenBlock<1>& x,
                               float (*sums)[kPanelRows]) {
  constexpr int kPanels = N * kStripPanels;
  const auto panel = [at](int i, int byte)
                         GEMELO_INLINE { return InStrips{at.p, at.stride, at.panel + i, byte}; };
  const F x_scale = set(x.scale[0]);
  for (int half = 0; half < P::kNumScales; half++) {
    I part[kPanels];
    each<kPanels>([&](auto i)
                      GEMELO_INLINE { part[i] = P::kMinima ? zeros() : all(x.bias[half][0]); });
    const uint8_t* end = last;
    while (half + 1 < P::kNumScales && end > column && end[-1] >= 16) end--;
    for (; column < end; column++) {
      const uint32_t alone = ((const uint8_t*)x.fours)[*column];
      const int byte = *column % 4, four = *column / 4;
      B only[kStripPanels];  // one panel's row of every lane
      each<kStripPanels>([&](auto k)
                             GEMELO_INLINE { only[k] = bytes_of(all((int32_t)(alone << 8 * k))); });
      const auto add = [&](int four) GEMELO_INLINE {
        each<N>([&](auto i) GEMELO_INLINE {
          const B u = P::quants(panel(i * kStripPanels, byte), run, block, four);
          each<kStripPanels>([&](auto k) GEMELO_INLINE {
            part[i * kStripPanels + k] = dot(part[i * kStripPanels + k], u, only[k]);
          });
        });
      };
      four < 4 ? add(four) : add(four);  // each of them knows which
    }
    each<kPanels>([&](auto i) GEMELO_INLINE {
      const F scale = P::scales(panel(i, 0), run, block, half) * x_scale;
      F total = fma(floats(part[i]), scale, load(sums[i]));
      if constexpr (P::kMinima)
        total = fma(set(x.sums[0]), P::minima(panel(i, 0), run, block), total);
      store(sums[i], total);
    });
  }
}

// The next block of a plan, for all of a thread's groups of panels from `first` on, while strips of
// later blocks are fetched.
template <class P>
static inline void add_block(const Matrix& w, int64_t first, int64_t groups,
                             const TokenBlock<1>* packed, Plan& plan, float (*sums)[kPanelRows]) {
  const LiveBlock here = *plan.next++;
  const uint8_t* column = plan.column;
  plan.column += here.columns;
  const int32_t ahead = plan.next[std::min<int64_t>(kBlocksAhead, plan.last - plan.next) - 1].lines;
  plan.prefetch(here.lines, here.lines);
  const auto at_once = (int32_t)((ahead - plan.fetched_lines) * kGroups / groups + 1);
  InStrips at = unit_in_strips<P>(w, first, here.block / P::kBlocks);
  const int run = here.block % P::kBlocks / P::kRun, block = here.block % P::kRun;
  const auto add = [&](auto N) {
    plan.prefetch(ahead, at_once);
    add_columns<P, N>(at, run, block, column, plan.column, packed[here.block], sums);
    at.panel += N * kStripPanels;
    sums += N * kStripPanels;
  };
  int64_t i = 0;
  for (; i + kGroups <= groups; i += kGroups) add(std::integral_constant<int, kGroups>{});
  for (; i < groups; i++) add(std::integral_constant<int, 1>{});
}

template <class P>
static void multiply_strips(gemelo::Worker& worker, const Activations& x, int64_t tokens,
                            const Matrix& w, const Activations& y) {
  constexpr int64_t kGroup = kStripPanels * kPanelRows;  // rows
  int64_t begin, end;
  worker.share(w.rows, kGroup, begin, end);
  const int64_t first = begin / kPanelRows, groups = (end - begin + kGroup - 1) / kGroup;
  const int64_t panels = groups * kStripPanels;
  if (!groups) return;
  const int64_t units = units_of<P>(w.columns), blocks = units * P::kBlocks;
  const int64_t strips = units * (P::kUnit / kLine) * 4;
  auto* packed = packed_room.room<TokenBlock<1>>(tokens * blocks);
  auto* live = block_room.room<LiveBlock>(tokens * blocks);
  auto* columns = column_room.room<uint8_t>(tokens * blocks * 32);
  auto* stretches = strip_room.room<Stretch>(tokens * strips);
  auto* pairs = pair_room.room<Pair>((blocks + 1) / 2);
  Plan plans[gemelo::kFewTokens];
  for (int64_t t = 0; t < tokens; t++) {
    pack_tokens<P, 1>(x, t, tokens, w.columns, pairs, packed + t * blocks);
    plans[t] = Plan(live + t * blocks, columns + t * blocks * 32, stretches + t * strips);
    plan<P>(packed + t * blocks, w, first, panels, plans[t]);
  }
  auto* sums = sum_room.room<float[kPanelRows]>(tokens * panels);
  std::memset(sums, 0, sizeof(*sums) * tokens * panels);
  for (int64_t until = kBlocksAtOnce; until < blocks + kBlocksAtOnce; until += kBlocksAtOnce)
    for (int64_t t = 0; t < tokens; t++)
      while (plans[t].next < plans[t].last && plans[t].next->block < until)
        add_block<P>(w, first, groups, packed + t * blocks, plans[t], sums + t * panels);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t i = 0; begin + i * kPanelRows < end; i++)
      put_panel(y, t, begin + i * kPanelRows, end, sums[t * panels + i]);
}

}  // namespace GEMELO_ISA
