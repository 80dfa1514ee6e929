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

constexpr int kStripsAhead = 8;      // that are fetched beforehand
constexpr int64_t kUnitsAtOnce = 8;  // whose strips stay near for all tokens
constexpr int kScaling = 8;

static thread_local gemelo::Scratch pass_room, strip_room, part_room;

// A four of a block times a token's four; or, behind a block's fours, what they come to times the
// levels of the block or of its half.
struct Pass {
  int32_t unit, block_of_all;
  uint8_t run, block, half, four;  // kScaling instead of a four: the levels
  int32_t strips;                  // that all passes up to this one read
};

// The passes that a token needs, and the strips that they read, each once and by its number.
struct Plan {
  Pass *next, *last;
  int32_t *strips, *fetched, *last_strip;
};

// Notes the lines of a unit instead of reading them.
struct Noted {
  uint64_t* lines;
  const uint8_t* operator()(int64_t offset) const {
    alignas(kLine) static const uint8_t nothing[kLine] = {};
    *lines |= uint64_t{1} << offset / kLine;
    return nothing;
  }
};
template <class P>
static inline uint64_t lines_of(const Pass& pass) {
  static_assert(P::kUnit <= 64 * kLine);
  uint64_t lines = 0;
  if (pass.four < kScaling) (void)P::quants(Noted{&lines}, pass.run, pass.block, pass.four);
  else {
    (void)P::levels(Noted{&lines}, pass.run, pass.block, pass.half);
    if constexpr (P::kMinima) (void)P::offsets(Noted{&lines}, pass.run, pass.block);
  }
  return lines;
}

// Makes the plan of a packed token. A broken scale counts, so that it shows.
template <class P>
static void plan(const TokenBlock<1>* packed, int64_t blocks, Plan& out) {
  uint64_t known = 0;  // lines of the unit that are planned
  const auto add = [&](Pass pass) {
    for (uint64_t more = lines_of<P>(pass) & ~known; more; more &= more - 1) {
      known |= more & -more;
      *out.last_strip++ = pass.unit * (P::kUnit / kLine) + __builtin_ctzll(more);
    }
    pass.strips = (int32_t)(out.last_strip - out.strips);
    *out.last++ = pass;
  };
  for (int64_t b = 0; b < blocks; b++) {
    const TokenBlock<1>& x = packed[b];
    if (b % P::kBlocks == 0) known = 0;
    Pass pass{};
    pass.unit = (int32_t)(b / P::kBlocks);
    pass.block_of_all = (int32_t)b;
    pass.run = (uint8_t)(b % P::kBlocks / P::kRun);
    pass.block = (uint8_t)(b % P::kRun);
    for (int half = 0; half < P::kLevels; half++) {
      const Pass* first = out.last;
      pass.half = (uint8_t)half;
      for (int i = 0; i < 8 / P::kLevels; i++) {
        pass.four = (uint8_t)(half * 8 / P::kLevels + i);
        if (x.fours[pass.four][0]) add(pass);
      }
      pass.four = kScaling;
      if (out.last > first || !std::isfinite(x.scale[0])) add(pass);
    }
  }
}

// parts[panel][row] += a four of every row; or, behind them, sums += levels * parts. `unit` is that
// of the first panel, and `later` a strip that is fetched meanwhile.
template <class P>
static inline void run_pass(const InStrips unit, const uint8_t* later, const Pass pass,
                            const TokenBlock<1>& x, int64_t panels, int32_t (*parts)[kPanel],
                            float (*sums)[kPanel]) {
  const auto panel = [&](int64_t i)
                         GEMELO_INLINE { return InStrips{unit.p + i * kLine, unit.stride}; };
  if (pass.four != kScaling) {
    const B four = bytes_of(all(x.fours[pass.four][0]));
    for (int64_t i = 0; i < panels; i++) {
      __builtin_prefetch(later + i * kLine, 0, 2);
      const B u = P::quants(panel(i), pass.run, pass.block, pass.four);
      store(parts[i], dot(load(parts[i]), u, four));
    }
    return;
  }
  const F scale = set(x.scale[0]);
  for (int64_t i = 0; i < panels; i++) {
    __builtin_prefetch(later + i * kLine, 0, 2);
    const InStrips from = panel(i);
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
  const int64_t most = blocks * (8 + P::kLevels), lines = units * (P::kUnit / kLine);
  auto* packed = packed_room.room<TokenBlock<1>>(tokens * blocks);
  auto* passes = pass_room.room<Pass>(tokens * most);
  auto* strips = strip_room.room<int32_t>(tokens * lines);
  Plan plans[gemelo::kFewTokens];
  for (int64_t t = 0; t < tokens; t++) {
    pack_tokens<P, 1>(x, t, tokens, w.columns, pair_room.room<Pair>((blocks + 1) / 2),
                      packed + t * blocks);
    Pass* first = passes + t * most;
    int32_t* strip = strips + t * lines;
    plans[t] = {first, first, strip, strip, strip};
    plan<P>(packed + t * blocks, blocks, plans[t]);
  }
  int64_t begin, end;
  worker.share(w.rows, kPanel, begin, end);
  const int64_t panels = (end - begin + kPanel - 1) / kPanel;
  auto* parts = part_room.room<int32_t[kPanel]>(panels);
  auto* sums = sum_room.room<float[kPanel]>(tokens * panels);
  std::memset(parts, 0, sizeof(*parts) * panels);
  std::memset(sums, 0, sizeof(*sums) * tokens * panels);
  const uint8_t* mine = w.blocks + begin / kPanel * kLine;  // of every strip
  for (int64_t unit = 0; unit < units; unit += kUnitsAtOnce)
    for (int64_t t = 0; t < tokens; t++) {
      Plan& p = plans[t];
      for (; p.next < p.last && p.next->unit < unit + kUnitsAtOnce; p.next++) {
        const int32_t* until = p.strips + p.next->strips + kStripsAhead;
        if (until > p.last_strip) until = p.last_strip;
        while (until - p.fetched > 1) fetch(mine + *p.fetched++ * w.stride, panels * kLine);
        const uint8_t* later = mine + *(p.fetched < until ? p.fetched++ : until - 1) * w.stride;
        run_pass<P>(unit_in_strips<P>(w, begin / kPanel, p.next->unit), later, *p.next,
                    packed[t * blocks + p.next->block_of_all], panels, parts, sums + t * panels);
      }
    }
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t i = 0; i < panels; i++)
      put_panel(y, t, begin + i * kPanel, end, sums[t * panels + i]);
}

}  // namespace GEMELO_ISA
