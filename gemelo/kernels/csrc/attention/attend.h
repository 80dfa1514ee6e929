// Attention in float, of exact tokens or without tiles, as Flash-Decoding splits it: every key and
// value is read once for all the heads that share it, some slots at a time.
//
// What a split of the slots contributes to a head (a part) has sums of its own, and parts are put
// together in the order of their slots. So a result depends neither on how slots were shared out
// among threads nor on what other tokens, of which sequences, there are.

#pragma once

#include <algorithm>
#include <cmath>

#include "attention/kv_cache.h"
#include "runtime/kernels.h"
#include "runtime/scratch.h"
#include "simd/math.h"
#include "simd/prefetch.h"
#include "simd/unroll.h"

namespace GEMELO_ISA {

using gemelo::Attend;
using gemelo::Piece;
using gemelo::Worker;

constexpr int kPartSlots = 64;                          // of a part
constexpr int kSlotsAhead = 4;                          // whose keys are fetched beforehand
constexpr int kHeadsAtOnce = kMicroTokens > 4 ? 4 : 2;  // as registers allow

// A part, behind the d sums of its weighted values. Weights are relative to the largest score; with
// no slot to look at, `total` is 0.
struct Part {
  float most = -INFINITY, total = 0;
};
static inline int64_t part_floats(int64_t d) { return d + 16; }
static inline Part& part_of(float* sums, int64_t d) { return *(Part*)(sums + d); }

// Whether the token at `query`, which looks ahead as far as `until`, sees a key.
static inline bool attends_to(int64_t query, int64_t until, int64_t key, int64_t window) {
  return key >= 0 && key <= until && (!window || key > query - window);
}

// Scores to weights, in place, filled up to sixteens: the part but for its values.
static inline Part softmax_part(float* scores, int count) {
  for (int i = count; i % 16; i++) scores[i] = scores[count - 1];
  F top = load(scores), odd = set(0);  // odd becomes NaN with any score that is not finite
  for (int i = 0; i < count; i += 16) {
    top = larger(top, load(scores + i));
    odd = fma(load(scores + i), set(0), odd);
  }
  const float most = largest(top);
  for (int i = count; i % 16; i++) scores[i] = most - 200;  // e^-87: nothing
  F total = set(0);
  for (int i = 0; i < count; i += 16) {
    const F e = exponential(load(scores + i) - set(most));
    store(scores + i, e);
    total = total + e;
  }
  return {most, sum(total) + sum(odd)};
}

// The scores of H heads, d apart in q, over the slots `seen`, to rows of kPartSlots. The values
// that will be looked at are fetched meanwhile.
template <int H, class Number>
static inline void score_slots(const float* q, const Slots<Number> k, int64_t d,
                               const int32_t* seen, int count, float scale, Prefetcher& values,
                               float* scores) {
  constexpr int kLine = 64 / sizeof(Number);  // numbers that are fetched together
  for (int i = 0; i < count; i++) {
    const Number* key = k.at(seen[i]);
    F sums[H];
    each<H>([&](auto h) GEMELO_INLINE { sums[h] = set(0); });
    for (int64_t p = 0; p < d; p += kLine) {
      __builtin_prefetch(key + kSlotsAhead * k.stride + p);
      values.next_line();
      each<kLine / 16>([&](auto j) GEMELO_INLINE {
        const F x = load_numbers(key + p + 16 * j);
        each<H>([&](auto h)
                    GEMELO_INLINE { sums[h] = fma(load(q + h * d + p + 16 * j), x, sums[h]); });
      });
    }
    const float times = scale * k.scale(seen[i]);
    each<H>([&](auto h) GEMELO_INLINE { scores[h * kPartSlots + i] = sum(sums[h]) * times; });
  }
}

// The values of the slots `seen`, times the weights of H heads, and these summed up. The keys that
// come next are fetched meanwhile.
template <int H, class Number>
static inline void sum_values(const float* weights, const Slots<Number> v, int64_t d,
                              const int32_t* seen, int count, Prefetcher& keys, float* parts) {
  constexpr int kLine = 64 / sizeof(Number);
  for (int64_t p = 0; p < d; p += 64) {
    F y[H][4];
    each<H>([&](auto h) GEMELO_INLINE { each<4>([&](auto j) { y[h][j] = set(0); }); });
    for (int i = 0; i < count; i++) {
      const Number* value = v.at(seen[i]) + p;
      each<64 / kLine>([&](auto) GEMELO_INLINE { keys.next_line(); });
      each<4>([&](auto j) GEMELO_INLINE {
        const F x = load_numbers(value + 16 * j);
        each<H>([&](auto h)
                    GEMELO_INLINE { y[h][j] = fma(set(weights[h * kPartSlots + i]), x, y[h][j]); });
      });
    }
    each<H>([&](auto h) GEMELO_INLINE {
      each<4>([&](auto j)
                  GEMELO_INLINE { store(parts + h * part_floats(d) + p + 16 * j, y[h][j]); });
    });
  }
}

// Body(number of heads, first of them): a group of heads, as many at once as registers allow.
template <class Body>
static inline void by_heads(int64_t group, const Body& body) {
  int64_t head = 0;
  for (; head + kHeadsAtOnce <= group; head += kHeadsAtOnce)
    body(std::integral_constant<int, kHeadsAtOnce>{}, head);
  for (; head + 2 <= group; head += 2) body(std::integral_constant<int, 2>{}, head);
  if (head < group) body(std::integral_constant<int, 1>{}, head);
}

static inline const gemelo::SlotPositions& slots_of(const Attend& a, const Piece& piece) {
  return piece.cache->slots[(int)a.layer_type];
}
static inline int64_t parts_of(const Attend& a, const Piece& piece) {
  return (slots_of(a, piece).used + kPartSlots - 1) / kPartSlots;
}

// Goes along a list of what pieces have, `count(piece)` things each, one piece's behind another's.
template <class Count>
struct Walk {
  const Piece* piece;
  Count count;
  int64_t first = 0;  // of the piece's things

  Walk(const Piece* pieces, Count count) : piece(pieces), count(count) {}

  // Where in its piece a thing lies; never one before the last that was asked for.
  int64_t to(int64_t i) {
    for (int64_t there; i >= first + (there = count(*piece)); piece++) first += there;
    return i - first;
  }
};

template <class Count>
static inline int64_t count_all(const Piece* pieces, const Piece* end, const Count& count) {
  int64_t all = 0;
  for (; pieces < end; pieces++) all += count(*pieces);
  return all;
}

// The slots of a part, for the heads of a piece's token that share the `count` key heads from
// `shared` on.
struct Split {
  const Piece* piece;
  int64_t token, shared, count, begin, end;
};

static inline Split split_of(const Attend& a, const Piece& piece, int64_t token, int64_t part,
                             int64_t shared, int64_t count) {
  const int64_t begin = part * kPartSlots;
  return {&piece, token, shared,
          count,  begin, std::min(begin + kPartSlots, slots_of(a, piece).used)};
}

// The slots [first, last) of the key heads of a split, which lie side by side.
template <class Number>
static inline Prefetcher prefetcher(const Slots<Number>& of, const Split& split, int64_t first,
                                    int64_t last, int64_t d) {
  const auto* at = (const uint8_t*)of.at(first);
  const int64_t row = of.stride * sizeof(Number), bytes = split.count * d * sizeof(Number);
  return {at, at + (last - first) * row, bytes / 64, row - bytes};
}

// The parts that a split contributes to its heads; `next` is what this thread reads after it. Keys
// of all heads go before values of all heads, so that memory is read as it lies; and it is never
// idle, as values are fetched while keys are scored, and the next keys while values are added up.
static inline void attend_split(const Attend& a, const Split& split, const Split& next,
                                float* parts) {
  static thread_local gemelo::Scratch room;
  const Piece& piece = *split.piece;
  const KvCache& cache = *piece.cache;
  const KvTensor& kept_keys = cache.layers[a.layer].k;
  const KvTensor& kept_values = cache.layers[a.layer].v;
  const int64_t d = cache.d, group = a.heads / cache.heads, heads = split.count * group;
  const int64_t* positions = slots_of(a, piece).positions;
  const float* q = a.q + ((piece.first + split.token) * a.heads + split.shared * group) * d;
  const int64_t query = piece.position + split.token, until = piece.until(split.token);
  float* weights = room.room<float>(heads * kPartSlots);
  int32_t seen[kPartSlots] = {(int32_t)split.begin};
  int count = 0;
  for (int64_t s = split.begin; s < split.end; s++)
    if (attends_to(query, until, positions[s], a.window)) seen[count++] = (int32_t)s;
  with_numbers(cache, [&](auto number) {
    using Of = Slots<decltype(number)>;
    const KvCache& later = *next.piece->cache;
    const Of keys(later, later.layers[a.layer].k, next.shared);
    const Of values(cache, kept_values, split.shared);
    Prefetcher next_keys = prefetcher(keys, next, next.begin, next.end, d);
    Prefetcher then =
        prefetcher(values, split, seen[0], count ? seen[count - 1] + 1 : split.begin, d);
    for (int64_t i = 0; i < split.count; i++)
      by_heads(group, [&](auto H, int64_t head) GEMELO_INLINE {
        const Of k(cache, kept_keys, split.shared + i);
        score_slots<H>(q + (i * group + head) * d, k, d, seen, count, a.scale, then,
                       weights + (i * group + head) * kPartSlots);
      });
    for (int64_t i = 0; i < split.count; i++) {
      const Of v(cache, kept_values, split.shared + i);
      for (int64_t head = i * group; head < (i + 1) * group; head++) {
        float* own = weights + head * kPartSlots;
        part_of(parts + head * part_floats(d), d) = count ? softmax_part(own, count) : Part{};
        if constexpr (Of::kScaled)
          for (int s = 0; s < count; s++) own[s] *= v.scale(seen[s]);
      }
      by_heads(group, [&](auto H, int64_t head) GEMELO_INLINE {
        sum_values<H>(weights + (i * group + head) * kPartSlots, v, d, seen, count, next_keys,
                      parts + (i * group + head) * part_floats(d));
      });
    }
  });
}

// sum = sum and one part more.
static inline void merge_part(float* sum, float* part, int64_t d) {
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

// Exact tokens: the parts of all of them are shared out in one list, by token, part and head, and
// then put together.
static inline const Piece* exact_end(const Attend& a) { return a.pieces + a.num_exact; }
static inline int64_t exact_parts(const Attend& a) {
  return count_all(a.pieces, exact_end(a),
                   [&](const Piece& piece) { return piece.tokens * parts_of(a, piece); });
}
static size_t exact_bytes(const Attend& a) {
  if (!a.num_exact) return 0;
  return sizeof(float) * exact_parts(a) * a.heads * part_floats(a.pieces->cache->d);
}

static void attend_exact(Worker& worker, const Attend& a, float* all) {
  const int64_t key_heads = a.pieces->cache->heads, group = a.heads / key_heads;
  const int64_t floats = part_floats(a.pieces->cache->d), all_parts = exact_parts(a);
  // All heads go together, unless that leaves too little for every thread.
  const int64_t cuts = all_parts >= 4 * worker.count ? 1 : key_heads;
  const int64_t runs = all_parts * cuts, shared = key_heads / cuts;
  Walk walk{a.pieces, [&](const Piece& piece) { return piece.tokens * parts_of(a, piece); }};
  const auto split = [&](int64_t i) {
    const int64_t at = walk.to(i / cuts), parts = parts_of(a, *walk.piece);
    return split_of(a, *walk.piece, at / parts, at % parts, i % cuts * shared, shared);
  };
  // Dealt out in turn: what a window shows of a ring lies together.
  int64_t i = worker.index;
  if (i >= runs) return;
  for (Split now = split(i); i < runs; i += worker.count) {
    const Split next = i + worker.count < runs ? split(i + worker.count) : now;
    attend_split(a, now, next, all + i * shared * group * floats);
    now = next;
  }
}

static void merge_exact(Worker& worker, const Attend& a, float* all) {
  const int64_t d = a.pieces->cache->d, floats = part_floats(d);
  const Piece& last = exact_end(a)[-1];
  int64_t begin, end, before = 0;  // parts of the pieces before
  worker.share((last.first + last.tokens) * a.heads, 1, begin, end);
  for (const Piece* piece = a.pieces; piece < exact_end(a); piece++) {
    const int64_t parts = parts_of(a, *piece), from = piece->first * a.heads;
    const int64_t until = from + piece->tokens * a.heads;
    for (int64_t i = std::max(begin, from); i < std::min(end, until); i++) {
      const int64_t token = (i - from) / a.heads, head = i % a.heads;
      float* first = all + ((before + token * parts) * a.heads + head) * floats;
      for (int64_t part = 1; part < parts; part++)
        merge_part(first, first + part * a.heads * floats, d);
      finish(first, a.out + i * d, d);
    }
    before += piece->tokens * parts;
  }
}

// Bulk tokens without tiles: each thread has tokens of its own.
static void attend_many(Worker& worker, const Attend& a) {
  static thread_local gemelo::Scratch room;
  const Piece *bulk = exact_end(a), *end = a.pieces + a.num_pieces;
  const int64_t d = bulk->cache->d, key_heads = bulk->cache->heads, floats = part_floats(d);
  float* sums = room.room<float>(2 * a.heads * floats);
  float* more = sums + a.heads * floats;
  const int64_t tokens = end[-1].first + end[-1].tokens - bulk->first;
  Walk walk{bulk, [](const Piece& piece) { return piece.tokens; }};
  // Later tokens see more: dealt out in turn, everybody gets early and late ones.
  for (int64_t i = worker.index; i < tokens; i += worker.count) {
    const int64_t token = walk.to(i), parts = parts_of(a, *walk.piece);
    for (int64_t part = 0; part < parts; part++) {
      const auto split = [&](int64_t part) {
        return split_of(a, *walk.piece, token, part, 0, key_heads);
      };
      attend_split(a, split(part), split((part + 1) % parts), part ? more : sums);
      for (int64_t head = 0; part && head < a.heads; head++)
        merge_part(sums + head * floats, more + head * floats, d);
    }
    for (int64_t head = 0; head < a.heads; head++)
      finish(sums + head * floats, a.out + ((bulk->first + i) * a.heads + head) * d, d);
  }
}

}  // namespace GEMELO_ISA
