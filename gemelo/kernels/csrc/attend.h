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

static inline bool sees(int64_t query, int64_t key, int64_t window) {
  if (query < 0) return true;  // padding: unread, but finite
  return key >= 0 && key <= query && (!window || key > query - window);
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

// What a token's heads make of a run of slots. Key heads lie side by side in a slot, and are read
// in that order: slot by slot, memory is one stream.
template <class Number>
struct PartOf {
  const Attend& a;
  const float* q;       // of the token's first head
  int64_t row, first;   // the key heads from this one on
  const int32_t* seen;  // slots
  int count;
  float (*weights)[kPartSlots];  // of a head in every slot
  float* parts;                  // of a head after the other

  int64_t group() const { return a.heads / a.cache.heads; }
  Slots<Number> keys(int64_t shared) const { return {a.cache, a.cache.k, row, shared}; }
  Slots<Number> values(int64_t shared) const { return {a.cache, a.cache.v, row, shared}; }

  // body(H, head) for all heads that share a key head, H at once.
  template <class Body>
  void by_heads(int64_t shared, const Body& body) const {
    int64_t head = shared * group();
    const int64_t last = head + group();
    for (; head + kHeadsAtOnce <= last; head += kHeadsAtOnce)
      body(std::integral_constant<int, kHeadsAtOnce>{}, head);
    for (; head + 2 <= last; head += 2) body(std::integral_constant<int, 2>{}, head);
    if (head < last) body(std::integral_constant<int, 1>{}, head);
  }

  // Scores of H heads in one slot.
  template <int H>
  void score(int i, const Slots<Number>& k, const Slots<Number>& v, int64_t head) const {
    constexpr int kLine = 64 / sizeof(Number);  // numbers that are fetched together
    const int64_t d = a.cache.d;
    const Number *key = k.at(seen[i]), *value = v.at(seen[i]);
    F sums[H];
    each<H>([&](auto h) GEMELO_INLINE { sums[h] = set(0); });
    for (int64_t p = 0; p < d; p += kLine) {
      __builtin_prefetch(key + kSlotsAhead * k.stride + p);
      __builtin_prefetch(value + p, 0, 2);
      each<kLine / 16>([&](auto j) GEMELO_INLINE {
        const F x = sixteen(key + p + 16 * j);
        const float* at = q + head * d + p + 16 * j;
        each<H>([&](auto h) GEMELO_INLINE { sums[h] = fma(load(at + h * d), x, sums[h]); });
      });
    }
    const float times = a.scale * k.scale(seen[i]);
    each<H>([&](auto h) GEMELO_INLINE { weights[head + h][i] = sum(sums[h]) * times; });
  }

  // The sums of H heads' weighted values.
  template <int H>
  void add_values(const Slots<Number>& v, int64_t head) const {
    const int64_t d = a.cache.d;
    float* to = parts + (head - first * group()) * part_floats(d);
    for (int64_t p = 0; p < d; p += 64) {
      F y[H][4];
      each<H>([&](auto h) GEMELO_INLINE { each<4>([&](auto j) { y[h][j] = set(0); }); });
      for (int i = 0; i < count; i++) {
        const Number* value = v.at(seen[i]) + p;
        each<4>([&](auto j) GEMELO_INLINE {
          const F x = sixteen(value + 16 * j);
          each<H>([&](auto h)
                      GEMELO_INLINE { y[h][j] = fma(set(weights[head + h][i]), x, y[h][j]); });
        });
      }
      each<H>([&](auto h) GEMELO_INLINE {
        each<4>([&](auto j)
                    GEMELO_INLINE { store(to + h * part_floats(d) + p + 16 * j, y[h][j]); });
      });
    }
  }

  void run(int64_t last) const {
    for (int i = 0; i < count; i++)
      for (int64_t shared = first; shared < last; shared++) {
        const Slots<Number> k = keys(shared), v = values(shared);
        by_heads(shared, [&](auto heads, int64_t head) { score<heads>(i, k, v, head); });
      }
    for (int64_t shared = first; shared < last; shared++) {
      const Slots<Number> v = values(shared);
      for (int64_t head = shared * group(); head < (shared + 1) * group(); head++) {
        float* part = parts + (head - first * group()) * part_floats(a.cache.d);
        part_of(part, a.cache.d) = count ? weigh(weights[head], count) : Part{};
        if constexpr (Slots<Number>::kScaled)
          for (int i = 0; i < count; i++) weights[head][i] *= v.scale(seen[i]);
      }
      by_heads(shared, [&](auto heads, int64_t head) { add_values<heads>(v, head); });
    }
  }
};

// The parts that slots [begin, end) of a row contribute to a token's heads, of those that share the
// key heads [first, last).
static inline void attend_part(const Attend& a, int64_t token, int64_t first, int64_t last,
                               int64_t begin, int64_t end, float* parts) {
  static thread_local gemelo::Scratch room;
  const int64_t row = token / a.tokens_a_row;
  const int64_t* positions = a.key_positions + row * a.position_stride;
  int32_t seen[kPartSlots];
  int count = 0;
  for (int64_t s = begin; s < end; s++)
    if (sees(a.query_positions[token], positions[s], a.window)) seen[count++] = (int32_t)s;
  with_numbers(a.cache, [&](auto number) {
    PartOf<decltype(number)>{a,     a.q + token * a.heads * a.cache.d,     row,  first, seen,
                             count, room.room<float[kPartSlots]>(a.heads), parts}
        .run(last);
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

// Few tokens: parts are shared out, then put together.
static size_t few_attend_bytes(const Attend& a) {
  return sizeof(float) * a.tokens * a.heads * parts_of(a) * part_floats(a.cache.d);
}
static void attend_few(Worker& worker, const Attend& a, void* room) {
  const int64_t d = a.cache.d, group = a.heads / a.cache.heads, parts = parts_of(a);
  const int64_t floats = part_floats(d);  // parts lie by token, run of slots, head
  float* all = (float*)room;
  // Dealt out in turn: what a window shows of a ring lies together. Few runs are dealt out by
  // heads.
  const int64_t runs = a.tokens * parts, heads = runs < 2 * worker.count ? 1 : a.cache.heads;
  for (int64_t i = worker.index; i < runs * a.cache.heads / heads; i += worker.count) {
    const int64_t run = i % runs, first = i / runs * heads, slot = run % parts * kPartSlots;
    attend_part(a, run / parts, first, first + heads, slot,
                slot + kPartSlots < a.slots ? slot + kPartSlots : a.slots,
                all + (run * a.heads + first * group) * floats);
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
  const int64_t d = a.cache.d, group = a.heads / a.cache.heads, floats = part_floats(d);
  float* sums = room.room<float>(2 * group * floats);
  float* parts = sums + group * floats;
  // Later tokens see more: dealt out in turn, everybody gets early and late ones.
  for (int64_t i = worker.index; i < a.tokens * a.cache.heads; i += worker.count) {
    for (int64_t slot = 0; slot < a.slots; slot += kPartSlots) {
      const int64_t end = slot + kPartSlots < a.slots ? slot + kPartSlots : a.slots;
      const int64_t shared = i % a.cache.heads;
      attend_part(a, i / a.cache.heads, shared, shared + 1, slot, end, slot ? parts : sums);
      for (int64_t head = 0; slot && head < group; head++)
        add_part(sums + head * floats, parts + head * floats, d);
    }
    for (int64_t head = 0; head < group; head++)
      finish(sums + head * floats, a.out + (i * group + head) * d, d);
  }
}

}  // namespace GEMELO_ISA
