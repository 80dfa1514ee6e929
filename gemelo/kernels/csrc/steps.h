// What lies between the products of a decoder: norms, rotary angles, attention, gates.
//
// Each is run by all threads of a step and takes its share of the tokens, heads or columns. Widths
// are multiples of sixteen (the program that calls checks that).

#pragma once

#include <cmath>

#include "curves.h"
#include "kernels.h"
#include "scratch.h"
#include "unroll.h"

namespace GEMELO_ISA {

using gemelo::Attend;
using gemelo::Cache;
using gemelo::Norm;
using gemelo::Worker;

static inline float root_mean_square_inverse(const float* x, int64_t width, float eps) {
  F squares = set(0);
  for (int64_t i = 0; i < width; i += 16) squares = fma(load(x + i), load(x + i), squares);
  return 1.0f / std::sqrt(sum(squares) / (float)width + eps);
}

// out = x / rms(x) * (offset + w); without w only x / rms(x).
static inline void norm_row(const float* x, const Norm& n, int64_t width, float* out) {
  const F inverse = set(root_mean_square_inverse(x, width, n.eps));
  for (int64_t i = 0; i < width; i += 16) {
    const F y = load(x + i) * inverse;
    store(out + i, n.weight ? y * (load(n.weight + i) + set(n.offset)) : y);
  }
}

static void norm(Worker& worker, const float* x, const Norm& n, int64_t tokens, int64_t width,
                 float* out) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) norm_row(x + t * width, n, width, out + t * width);
}

// x += norm(y), then out = norm(x) for what comes next, if that is asked for.
static void add_norm(Worker& worker, float* x, const float* y, const Norm& n, const Norm* next,
                     int64_t tokens, int64_t width, float* out) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    float* row = x + t * width;
    const float* add = y + t * width;
    const F inverse = set(root_mean_square_inverse(add, width, n.eps));
    for (int64_t i = 0; i < width; i += 16)
      store(row + i,
            load(row + i) + load(add + i) * inverse * (load(n.weight + i) + set(n.offset)));
    if (next) norm_row(row, *next, width, out + t * width);
  }
}

// h = gelu(gate) * up, over the columns [begin, end) of every token.
static void gate(float* gates, const float* up, int64_t tokens, int64_t width, int64_t begin,
                 int64_t end) {
  for (int64_t t = 0; t < tokens; t++) {
    float* g = gates + t * width;
    const float* u = up + t * width;
    for (int64_t i = begin; i < end; i += 16) store(g + i, gelu(load(g + i)) * load(u + i));
  }
}

// cap * tanh(x / cap), in place.
static void softcap(float* x, float cap, int64_t begin, int64_t end) {
  const F inverse = set(1.0f / cap);
  for (; begin + 16 <= end; begin += 16)
    store(x + begin, hyperbolic_tangent(load(x + begin) * inverse) * set(cap));
  for (; begin < end; begin++) x[begin] = cap * std::tanh(x[begin] / cap);
}

// Normalise heads of width d and turn their pairs (p, p + d/2) by the tokens' angles, in place.
// `angles` holds d/2 cosines and d/2 sines a token; null leaves the heads unturned.
static void heads(Worker& worker, float* x, int64_t tokens, int64_t count, int64_t d, const Norm& n,
                  const float* angles) {
  int64_t begin, end;
  worker.share(tokens * count, 1, begin, end);
  for (int64_t i = begin; i < end; i++) {
    float* head = x + i * d;
    norm_row(head, n, d, head);
    if (!angles) continue;
    const float* cosines = angles + i / count * d;
    const float* sines = cosines + d / 2;
    for (int64_t p = 0; p < d / 2; p += 16) {
      const F low = load(head + p), high = load(head + d / 2 + p);
      const F c = load(cosines + p), s = load(sines + p);
      store(head + p, low * c - high * s);
      store(head + d / 2 + p, high * c + low * s);
    }
  }
}

// Keys and values (tokens, heads * d) to the slots of the cache, padding nowhere.
static void keep(Worker& worker, const float* k, const float* v, const Cache& cache,
                 const int64_t* slots, int64_t tokens, int64_t tokens_a_row) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  const int64_t width = cache.heads * cache.d;
  for (int64_t t = begin; t < end; t++) {
    if (slots[t] < 0) continue;
    const int64_t at = t / tokens_a_row * cache.row_stride + slots[t] * width;
    std::memcpy(cache.k + at, k + t * width, width * sizeof(float));
    std::memcpy(cache.v + at, v + t * width, width * sizeof(float));
  }
}

static inline bool sees(int64_t query, int64_t key, int64_t window) {
  if (query < 0) return true;  // padding: unread, but finite
  return key >= 0 && key <= query && (!window || key > query - window);
}

// One token's head over its row's slots: softmax(q k / scale) v. `scores` has room for all slots.
static inline void attend_one(const float* q, const float* k, const float* v, int64_t stride,
                              int64_t d, const int64_t* positions, int64_t slots, int64_t query,
                              int64_t window, float scale, float* scores, int32_t* seen,
                              float* out) {
  int64_t count = 0;
  for (int64_t s = 0; s < slots; s++)
    if (sees(query, positions[s], window)) seen[count++] = (int32_t)s;
  float most = -INFINITY, odd = 0;  // odd becomes NaN with any score that is not finite
  for (int64_t i = 0; i < count; i++) {
    const float* key = k + seen[i] * stride;
    F a = set(0), b = set(0);
    for (int64_t p = 0; p < d; p += 32) {
      a = fma(load(q + p), load(key + p), a);
      b = fma(load(q + p + 16), load(key + p + 16), b);
    }
    scores[i] = sum(a + b) * scale;
    most = scores[i] > most ? scores[i] : most;
    odd += scores[i] * 0;
  }
  F total = set(0);
  for (int64_t i = count; i < (count + 15) / 16 * 16; i++)
    scores[i] = most - 200;  // e^-87: nothing
  for (int64_t i = 0; i < count; i += 16) {
    const F e = exponential(load(scores + i) - set(most));
    store(scores + i, e);
    total = total + e;
  }
  const F inverse = set(1.0f / (sum(total) + odd));
  for (int64_t p = 0; p < d; p += 64) {
    F y[4];
    each<4>([&](auto j) { y[j] = set(0); });
    for (int64_t i = 0; i < count; i++) {
      const float* value = v + seen[i] * stride + p;
      const F weight = set(scores[i]);
      each<4>([&](auto j) GEMELO_INLINE { y[j] = fma(weight, load(value + 16 * j), y[j]); });
    }
    each<4>([&](auto j) GEMELO_INLINE { store(out + p + 16 * j, y[j] * inverse); });
  }
}

// Attention of (tokens, query heads * d) over the cache; d a multiple of 64.
static void attend_each(Worker& worker, const Attend& a) {
  static thread_local gemelo::Scratch score_room, seen_room;
  float* scores = score_room.room<float>(a.slots + 16);
  int32_t* seen = seen_room.room<int32_t>(a.slots);
  const int64_t d = a.cache.d, group = a.heads / a.cache.heads, stride = a.cache.heads * d;
  // Later tokens see more: dealt out in turn, everybody gets early and late ones.
  for (int64_t i = worker.index; i < a.tokens * a.heads; i += worker.count) {
    const int64_t token = i / a.heads, head = i % a.heads, row = token / a.tokens_a_row;
    const int64_t at = row * a.cache.row_stride + head / group * d;
    attend_one(a.q + i * d, a.cache.k + at, a.cache.v + at, stride, d,
               a.key_positions + row * a.position_stride, a.slots, a.query_positions[token],
               a.window, a.scale, scores, seen, a.out + i * d);
  }
}

}  // namespace GEMELO_ISA
