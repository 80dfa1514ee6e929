// Elementwise operations of a decoder: RMSNorm, rotary embedding, GeGLU, soft cap, argmax, and
// storing keys and values.
//
// Each is run by all threads of a step and takes its share of the tokens, heads or columns. Widths
// are multiples of sixteen (the program that calls checks that).

#pragma once

#include <algorithm>
#include <cmath>

#include "attention/kv_cache.h"
#include "runtime/kernels.h"
#include "runtime/scratch.h"
#include "simd/math.h"
#include "simd/unroll.h"

namespace GEMELO_ISA {

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
static void gelu_and_mul(float* gates, const float* up, int64_t tokens, int64_t width,
                         int64_t begin, int64_t end) {
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

// Whether none of them is NaN or infinite.
static bool all_finite(const float* x, int64_t begin, int64_t end) {
  F odd[4] = {set(0), set(0), set(0), set(0)};  // NaN with anything else
  for (; begin + 64 <= end; begin += 64)
    each<4>([&](auto i) GEMELO_INLINE { odd[i] = fma(load(x + begin + 16 * i), set(0), odd[i]); });
  float rest = sum((odd[0] + odd[1]) + (odd[2] + odd[3]));
  for (; begin < end; begin++) rest += x[begin] * 0;
  return rest == 0;
}

// The same, and the largest of every kMaximaBlock of them; fewer may be left for the last.
static bool block_maxima(const float* x, int64_t begin, int64_t end, float* maxima) {
  static_assert(gemelo::kMaximaBlock == 64);
  F odd[4] = {set(0), set(0), set(0), set(0)};  // NaN with anything that is not finite
  for (; begin + 64 <= end; begin += 64) {
    F scores[4];
    each<4>([&](auto i) GEMELO_INLINE {
      scores[i] = load(x + begin + 16 * i);
      odd[i] = fma(scores[i], set(0), odd[i]);
    });
    *maxima++ = largest(larger(larger(scores[0], scores[1]), larger(scores[2], scores[3])));
  }
  float rest = sum((odd[0] + odd[1]) + (odd[2] + odd[3]));
  if (begin < end) *maxima = x[begin];
  for (; begin < end; begin++) {
    rest += x[begin] * 0;
    if (x[begin] > *maxima) *maxima = x[begin];
  }
  return rest == 0;
}

// Where the largest of [begin, end) is, the first if there are several: the best run, and in it.
static int64_t argmax(const float* x, int64_t begin, int64_t end) {
  constexpr int64_t kRun = 1024;
  float best = -INFINITY;
  int64_t at = begin;
  for (int64_t run = begin; run < end; run += kRun) {
    const int64_t last = run + kRun < end ? run + kRun : end;
    F tops[4] = {set(best), set(best), set(best), set(best)};
    int64_t i = run;
    for (; i + 64 <= last; i += 64)
      each<4>([&](auto j) GEMELO_INLINE { tops[j] = larger(tops[j], load(x + i + 16 * j)); });
    float top = largest(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])));
    for (; i < last; i++) top = x[i] > top ? x[i] : top;
    if (top > best) best = top, at = run;
  }
  for (int64_t i = at; i < end; i++)
    if (x[i] == best) return i;
  return at;
}

// Normalise heads of width d and rotate their pairs (p, p + d/2) by the tokens' angles, in place.
// `rotations` holds d/2 cosines and d/2 sines a token; null leaves out the rotary embedding.
static void norm_rope_heads(Worker& worker, float* x, int64_t tokens, int64_t count, int64_t d,
                            const Norm& n, const float* rotations) {
  int64_t begin, end;
  worker.share(tokens * count, 1, begin, end);
  for (int64_t i = begin; i < end; i++) {
    float* head = x + i * d;
    norm_row(head, n, d, head);
    if (!rotations) continue;
    const float* cosines = rotations + i / count * d;
    const float* sines = cosines + d / 2;
    for (int64_t p = 0; p < d / 2; p += 16) {
      const F low = load(head + p), high = load(head + d / 2 + p);
      const F c = load(cosines + p), s = load(sines + p);
      store(head + p, low * c - high * s);
      store(head + d / 2 + p, high * c + low * s);
    }
  }
}

// Keys and values of a layer (tokens, heads * d) to the slots of their pieces' caches.
static void store_kv(Worker& worker, const float* k, const float* v, const gemelo::Piece* pieces,
                     int64_t num_pieces, int layer, gemelo::LayerType layer_type) {
  const gemelo::Piece& last = pieces[num_pieces - 1];
  int64_t begin, end;
  worker.share(last.first + last.tokens, 1, begin, end);
  for (const gemelo::Piece* piece = pieces; piece < pieces + num_pieces; piece++) {
    const KvCache& cache = *piece->cache;
    const gemelo::KvLayer& kept = cache.layers[layer];
    const int64_t width = cache.heads * cache.d, until = piece->first + piece->tokens;
    for (int64_t t = std::max(begin, piece->first); t < std::min(end, until); t++)
      with_numbers(cache, [&](auto number) {
        const int64_t position = piece->position + t - piece->first;
        const int64_t slot = position % cache.slots[(int)layer_type].capacity;
        for (int64_t head = 0; head < cache.heads; head++) {
          const int64_t at = t * width + head * cache.d;
          Slots<decltype(number)>(cache, kept.k, head).put(slot, k + at, cache.d);
          Slots<decltype(number)>(cache, kept.v, head).put(slot, v + at, cache.d);
        }
      });
  }
}

}  // namespace GEMELO_ISA
