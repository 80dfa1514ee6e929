// Products of few tokens with strips: only those columns are read that meet anything but zeros.
//
// Gemma 3n's sparse layers wake one neuron in twenty, so that a token needs a twentieth of the
// columns of what follows. A line of a panel holds four or eight of them; as strips, the same line
// of all panels lies together, thousands of bytes that are worth going to. A product is a list of
// passes over the panels, each along one strip. Its sums are those of panels to the bit, since what
// is left out would add zeros.

#pragma once

#include "matrix.h"

namespace GEMELO_ISA {

constexpr int kPassesAhead = 2;      // whose strips are fetched beforehand
constexpr int64_t kUnitsAtOnce = 8;  // whose strips stay near for all tokens
constexpr int kScaling = 8;

static thread_local gemelo::Scratch pass_room, part_room;

// A four of a block times a token's four; or, behind a block's fours, what they come to times the
// levels of the block or of its half.
struct Pass {
  int32_t unit, block_of_all;
  uint8_t run, block, half, four;  // kScaling instead of a four: the levels
};

// The passes that a packed token needs; their end. A broken scale counts, so that it shows.
template <class P>
static Pass* live_passes(const TokenBlock<1>* packed, int64_t blocks, Pass* out) {
  for (int64_t b = 0; b < blocks; b++) {
    const TokenBlock<1>& x = packed[b];
    Pass pass{(int32_t)(b / P::kBlocks), (int32_t)b, (uint8_t)(b % P::kBlocks / P::kRun),
              (uint8_t)(b % P::kRun),    0,          0};
    for (int half = 0; half < P::kLevels; half++) {
      const Pass* first = out;
      pass.half = (uint8_t)half;
      for (int i = 0; i < 8 / P::kLevels; i++) {
        pass.four = (uint8_t)(half * 8 / P::kLevels + i);
        if (x.fours[pass.four][0]) *out++ = pass;
      }
      pass.four = kScaling;
      if (out > first || !std::isfinite(x.scale[0])) *out++ = pass;
    }
  }
  return out;
}

// Asks for the lines of a unit instead of reading them.
struct Fetched {
  InStrips lines;
  const uint8_t* operator()(int64_t offset) const {
    alignas(kLine) static const uint8_t nothing[kLine] = {};
    __builtin_prefetch(lines(offset), 0, 2);
    return nothing;
  }
};
template <class P>
static inline void fetch(const InStrips& lines, const Pass& pass) {
  if (pass.four == kScaling) (void)P::levels(Fetched{lines}, pass.run, pass.block, pass.half);
  else (void)P::quants(Fetched{lines}, pass.run, pass.block, pass.four);
}

// parts[panel][row] += a four of every row; or, behind them, sums += levels * parts. `unit` and
// `later_unit` are those of the first panel.
template <class P>
static inline void run_pass(const InStrips unit, const InStrips later_unit, const Pass pass,
                            const Pass later, const TokenBlock<1>& x, int64_t panels,
                            int32_t (*parts)[kPanel], float (*sums)[kPanel]) {
  const auto panel = [](const InStrips& unit, int64_t i)
                         GEMELO_INLINE { return InStrips{unit.p + i * kLine, unit.stride}; };
  if (pass.four != kScaling) {
    const B four = bytes_of(all(x.fours[pass.four][0]));
    for (int64_t i = 0; i < panels; i++) {
      fetch<P>(panel(later_unit, i), later);
      const B u = P::quants(panel(unit, i), pass.run, pass.block, pass.four);
      store(parts[i], dot(load(parts[i]), u, four));
    }
    return;
  }
  const F scale = set(x.scale[0]);
  for (int64_t i = 0; i < panels; i++) {
    fetch<P>(panel(later_unit, i), later);
    const InStrips from = panel(unit, i);
    F part = floats(load(parts[i])), total = load(sums[i]);
    if constexpr (!P::kMinima) part = part + set((float)x.bias[pass.half][0]);  // exact
    total = fma(part, P::levels(from, pass.run, pass.block, pass.half) * scale, total);
    if constexpr (P::kMinima)
      total = fma(set(x.sums[0]), P::offsets(from, pass.run, pass.block), total);
    store(sums[i], total);
    store(parts[i], zeros());
  }
}

template <class P>
static void multiply_strips(gemelo::Worker& worker, const Activations& x, int64_t tokens,
                            const Matrix& w, const Activations& y) {
  const int64_t units = units_of<P>(w.columns), blocks = units * P::kBlocks;
  const int64_t most = blocks * (8 + P::kLevels);
  auto* packed = packed_room.room<TokenBlock<1>>(tokens * blocks);
  auto* passes = pass_room.room<Pass>(tokens * most);
  Pass *next[gemelo::kFewTokens], *last[gemelo::kFewTokens];
  for (int64_t t = 0; t < tokens; t++) {
    pack_tokens<P, 1>(x, t, tokens, w.columns, pair_room.room<Pair>((blocks + 1) / 2),
                      packed + t * blocks);
    next[t] = passes + t * most;
    last[t] = live_passes<P>(packed + t * blocks, blocks, next[t]);
  }
  int64_t begin, end;
  worker.share(w.rows, kPanel, begin, end);
  const int64_t panels = (end - begin + kPanel - 1) / kPanel;
  auto* parts = part_room.room<int32_t[kPanel]>(panels);
  auto* sums = sum_room.room<float[kPanel]>(tokens * panels);
  std::memset(parts, 0, sizeof(*parts) * panels);
  std::memset(sums, 0, sizeof(*sums) * tokens * panels);
  const auto strips = [&](const Pass& pass) {
    return unit_in_strips<P>(w, begin / kPanel, pass.unit);
  };
  for (int64_t unit = 0; unit < units; unit += kUnitsAtOnce)
    for (int64_t t = 0; t < tokens; t++)
      for (Pass*& pass = next[t]; pass < last[t] && pass->unit < unit + kUnitsAtOnce; pass++) {
        const Pass& later = last[t] - pass > kPassesAhead ? pass[kPassesAhead] : *pass;
        run_pass<P>(strips(*pass), strips(later), *pass, later,
                    packed[t * blocks + pass->block_of_all], panels, parts, sums + t * panels);
      }
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t i = 0; i < panels; i++)
      put_panel(y, t, begin + i * kPanel, end, sums[t * panels + i]);
}

}  // namespace GEMELO_ISA
