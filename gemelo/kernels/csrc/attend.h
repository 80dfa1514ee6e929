// Attention of few tokens, or without tiles: every key and value is read once for all the heads
// that share it, some slots at a time.
//
// What a run of slots contributes to a head (a part) has sums of its own, and parts are put
// together in the order of their slots. So a result depends neither on how slots were shared out
// among threads nor on what other tokens there are.

#pragma once

#include <cmath>

#include "curves.h"
#include "kernels.h"
#include "scratch.h"
#include "slots.h"
#include "unroll.h"

namespace GEMELO_ISA {

using gemelo::Attend;
using gemelo::Worker;

constexpr int kPartSlots = 64;                     // of a part
constexpr int kSlotsAhead = 4;                     // whose keys are fetched beforehand
constexpr int kHeadsAtOnce = kTokens > 4 ? 4 : 2;  // as registers allow

// A part, behind the d sums of its weighted values. Weights are relative to the largest score; with
// no slot to look at, `total` is 0.
struct Part {
  float most = -INFINITY, total = 0;
};
static inline int64_t part_floats(int64_t d) { return d + 16; }
static inline Part& part_of(float* sums, int64_t d) { return *(Part*)(sums + d); }

// Whether the token at `query`, which looks ahead as far as `reach`, sees a key.
static inline bool sees(int64_t query, int64_t reach, int64_t key, int64_t window) {
  if (query < 0) return true;  // padding: unread, but finite
  return key >= 0 && key <= reach && (!window || key > query - window);
}

// Scores to weights, in place, filled up to sixteens: the part but for its values.
static inline Part weigh(float* scores, int count) {
  float most = -INFINITY, odd = 0;  // odd becomes NaN with any score that is not finite
  for (int i = 0; i < count; i++) {
    most = scores[i] > most ? scores[i] : most;
    odd += scores[i] * 0;
  }
  for (int i = count; i % 16; i++) scores[i] = most - 200;  // e^-87: nothing
  F total = set(0);
  for (int i = 0; i < count; i += 16) {
    const F e = exponential(load(scores + i) - set(most));
    store(scores + i, e);
    total = total + e;
  }
  return {most, sum(total) + odd};
}

// The parts of H heads, d apart in q, over the slots `seen`. Memory is never idle: values are
// fetched while their keys are scored, and while they are added up the keys that come next, which
// lie `onwards` numbers from these.
template <int H, class Number>
static inline void attend_slots(const float* q, const Slots<Number> k, const Slots<Number> v,
                                int64_t d, const int32_t* seen, int count, int64_t onwards,
                                float scale, float* parts) {
  constexpr int kLine = 64 / sizeof(Number);  // numbers that are fetched together
  float weights[H][kPartSlots];
  for (int i = 0; i < count; i++) {
    const Number* key = k.at(seen[i]);
    const Number* value = v.at(seen[i]);
    F sums[H];
    each<H>([&](auto h) GEMELO_INLINE { sums[h] = set(0); });
    for (int64_t p = 0; p < d; p += kLine) {
      __builtin_prefetch(key + kSlotsAhead * k.stride + p);
      __builtin_prefetch(value + p, 0, 2);
      each<kLine / 16>([&](auto j) GEMELO_INLINE {
        const F x = sixteen(key + p + 16 * j);
        each<H>([&](auto h)
                    GEMELO_INLINE { sums[h] = fma(load(q + h * d + p + 16 * j), x, sums[h]); });
      });
    }
    const float times = scale * k.scale(seen[i]);
    each<H>([&](auto h) GEMELO_INLINE { weights[h][i] = sum(sums[h]) * times; });
  }
  each<H>([&](auto h) GEMELO_INLINE {
    part_of(parts + h * part_floats(d), d) = count ? weigh(weights[h], count) : Part{};
  });
  if constexpr (Slots<Number>::kScaled)
    for (int i = 0; i < count; i++)
      each<H>([&](auto h) GEMELO_INLINE { weights[h][i] *= v.scale(seen[i]); });
  for (int64_t p = 0; p < d; p += 64) {
    F y[H][4];
    each<H>([&](auto h) GEMELO_INLINE { each<4>([&](auto j) { y[h][j] = set(0); }); });
    for (int i = 0; i < count; i++) {
      const Number* value = v.at(seen[i]) + p;
      const Number* next = k.at(seen[i]) + onwards + p;
      each<64 / kLine>([&](auto j) GEMELO_INLINE { __builtin_prefetch(next + kLine * j, 0, 2); });
      each<4>([&](auto j) GEMELO_INLINE {
        const F x = sixteen(value + 16 * j);
        each<H>([&](auto h) GEMELO_INLINE { y[h][j] = fma(set(weights[h][i]), x, y[h][j]); });
      });
    }
    each<H>([&](auto h) GEMELO_INLINE {
      each<4>([&](auto j)
                  GEMELO_INLINE { store(parts + h * part_floats(d) + p + 16 * j, y[h][j]); });
    });
  }
}

// Slots [begin, end) for the heads of a token that share key head `shared`.
struct Run {
  int64_t token, shared, begin, end;
};

// The parts that a run contributes to its heads; `next` is what this thread reads after it.
static inline void attend_run(const Attend& a, const Run& run, const Run& next, float* parts) {
  const int64_t d = a.cache.d, group = a.heads / a.cache.heads;
  const int64_t row = run.token / a.tokens_a_row, next_row = next.token / a.tokens_a_row;
  const int64_t* positions = a.key_positions + row * a.position_stride;
  const float* q = a.q + (run.token * a.heads + run.shared * group) * d;
  const int64_t query = a.query_positions[run.token], reach = a.reach[run.token];
  int32_t seen[kPartSlots];
  int count = 0;
  for (int64_t s = run.begin; s < run.end; s++)
    if (sees(query, reach, positions[s], a.window)) seen[count++] = (int32_t)s;
  with_numbers(a.cache, [&](auto number) {
    using Of = Slots<decltype(number)>;
    const Of k(a.cache, a.cache.k, row, run.shared), v(a.cache, a.cache.v, row, run.shared);
    const Of then(a.cache, a.cache.k, next_row, next.shared);
    const int64_t onwards = then.at(next.begin) - k.at(run.begin);
    int64_t head = 0;
    const auto some = [&](auto heads) GEMELO_INLINE {
      attend_slots<heads>(q + head * d, k, v, d, seen, count, onwards, a.scale,
                          parts + head * part_floats(d));
      head += heads;
    };
    while (head + kHeadsAtOnce <= group) some(std::integral_constant<int, kHeadsAtOnce>{});
    while (head + 2 <= group) some(std::integral_constant<int, 2>{});
    if (head < group) some(std::integral_constant<int, 1>{});
  });
}

// sum = sum and one part more.
static inline void add_part(float* sum, float* part, int64_t d) {
  Part &s = part_of(sum, d), &p = part_of(part, d);
  if (p.total == 0) return;
  const float most = p.most > s.most ? p.most : s.most;
  const float old = s.total == 0 ? 0 : std::exp(s.most - most), more = std::exp(p.most - most);
  for (int64_t i = 0; i < d; i += 16)
    store(sum + i, load(sum + i) * set(old) + load(part + i) * set(more));
  s = {most, s.total * old + p.total * more};
}

static inline void finish(const float* sum, float* out, int64_t d) {
  const F inverse = set(1.0f / part_of((float*)sum, d).total);
  for (int64_t i = 0; i < d; i += 16) store(out + i, load(sum + i) * inverse);
}

static inline int64_t parts_of(const Attend& a) { return (a.slots + kPartSlots - 1) / kPartSlots; }

// Runs by token, slots and key head: the heads of a slot lie side by side, and so are they read.
static inline Run run_of(const Attend& a, int64_t number) {
  const int64_t parts = parts_of(a), unit = number / a.cache.heads;
  const int64_t slot = unit % parts * kPartSlots;
  const int64_t end = slot + kPartSlots < a.slots ? slot + kPartSlots : a.slots;
  return {unit / parts, number % a.cache.heads, slot, end};
}

// Few tokens: parts are shared out, then put together.
static size_t few_attend_bytes(const Attend& a) {
  return sizeof(float) * a.tokens * a.heads * parts_of(a) * part_floats(a.cache.d);
}
static void attend_few(Worker& worker, const Attend& a, void* room) {
  const int64_t d = a.cache.d, group = a.heads / a.cache.heads, parts = parts_of(a);
  const int64_t floats = part_floats(d), runs = a.tokens * a.cache.heads * parts;
  float* all = (float*)room;  // by run, then by head
  // Dealt out in turn: what a window shows of a ring lies together.
  for (int64_t i = worker.index; i < runs; i += worker.count) {
    const int64_t next = i + worker.count < runs ? i + worker.count : i;
    attend_run(a, run_of(a, i), run_of(a, next), all + i * group * floats);
  }
  worker.barrier();
  int64_t begin, end;
  worker.share(a.tokens * a.heads, 1, begin, end);
  for (int64_t i = begin; i < end; i++) {
    float* first = all + (i / a.heads * parts * a.heads + i % a.heads) * floats;
    for (int64_t part = 1; part < parts; part++)
      add_part(first, first + part * a.heads * floats, d);
    finish(first, a.out + i * d, d);
  }
}

// Many tokens: each thread has tokens of its own.
[[maybe_unused]] static void attend_many(Worker& worker, const Attend& a) {
  static thread_local gemelo::Scratch room;
  const int64_t d = a.cache.d, group = a.heads / a.cache.heads;
  const int64_t floats = part_floats(d), parts = parts_of(a);
  float* sums = room.room<float>(2 * group * floats);
  float* more = sums + group * floats;
  // Later tokens see more: dealt out in turn, everybody gets early and late ones.
  for (int64_t i = worker.index; i < a.tokens * a.cache.heads; i += worker.count) {
    const int64_t first = i / a.cache.heads * parts * a.cache.heads + i % a.cache.heads;
    for (int64_t part = 0; part < parts; part++) {
      const Run run = run_of(a, first + part * a.cache.heads);
      const Run next = run_of(a, first + (part + 1) % parts * a.cache.heads);
      attend_run(a, run, next, part ? more : sums);
      for (int64_t head = 0; part && head < group; head++)
        add_part(sums + head * floats, more + head * floats, d);
    }
    for (int64_t head = 0; head < group; head++)
      finish(sums + head * floats, a.out + (i * group + head) * d, d);
  }
}

}  // namespace GEMELO_ISA
