// What Gemma 3n has between its products: streams that are predicted and corrected (AltUp, arXiv
// 2301.13310), the low-rank detour, the strongest gates, vectors for every layer.

#pragma once

#include "ops/elementwise.h"

namespace GEMELO_ISA {

using gemelo::AltUp;

constexpr int kStreams = gemelo::kStreams;

// tanh of the router's view of one token: kStreams numbers.
static inline void modalities(const float* x, const AltUp& a, int64_t width, float* out) {
  const float inverse = root_mean_square_inverse(x, width, a.router.eps) / (float)width;
  for (int s = 0; s < kStreams; s++) {
    F total = set(0);
    for (int64_t i = 0; i < width; i += 16) {
      const F normed = load(x + i) * (load(a.router.weight + i) + set(a.router.offset));
      total = fma(normed, load(a.route + s * width + i), total);
    }
    out[s] = std::tanh(sum(total) * inverse);
  }
}

// predicted = streams + a mixture of all of them.
static void predict(Worker& worker, const float* const* streams, float* const* predicted,
                    const AltUp& a, int64_t tokens, int64_t width) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    float seen[kStreams], mix[kStreams][kStreams];
    modalities(streams[0] + t * width, a, width, seen);
    for (int i = 0; i < kStreams * kStreams; i++) {
      float total = 0;
      for (int s = 0; s < kStreams; s++) total += a.predict[i * kStreams + s] * seen[s];
      mix[i / kStreams][i % kStreams] = total;
    }
    for (int64_t i = t * width; i < (t + 1) * width; i += 16) {
      F x[kStreams];
      each<kStreams>([&](auto s) { x[s] = load(streams[s] + i); });
      each<kStreams>([&](auto o) GEMELO_INLINE {
        F y = x[o];
        each<kStreams>([&](auto s) GEMELO_INLINE { y = fma(set(mix[o][s]), x[s], y); });
        store(predicted[o] + i, y);
      });
    }
  }
}

// streams = predicted + its share of what the block found; `scaled` is the first one times
// correct_output_scale.
static void correct(Worker& worker, float* const* streams, const float* const* predicted,
                    const float* activated, const AltUp& a, int64_t tokens, int64_t width,
                    float* scaled) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    float seen[kStreams], share[kStreams];
    modalities(activated + t * width, a, width, seen);
    for (int o = 0; o < kStreams; o++) {
      share[o] = 1;
      for (int s = 0; s < kStreams; s++) share[o] += a.correct[o * kStreams + s] * seen[s];
    }
    for (int64_t i = 0; i < width; i += 16) {
      const int64_t at = t * width + i;
      const F found = load(activated + at) - load(predicted[0] + at);
      for (int o = 0; o < kStreams; o++) {
        const F y = fma(found, set(share[o]), load(predicted[o] + at));
        store(streams[o] + at, y);
        if (!o) store(scaled + at, y * load(a.output_scale + i));
      }
    }
  }
}

// out = ((active + norm(attended)) + (x + norm(detour))) / sqrt 2, and normed = norm(out) for the
// feed-forward.
static void meet(Worker& worker, const float* active, const float* attended, const Norm& n,
                 const float* x, const float* detour, const Norm& m, const Norm& next,
                 int64_t tokens, int64_t width, float* out, float* normed) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    const int64_t at = t * width;
    const F first = set(root_mean_square_inverse(attended + at, width, n.eps));
    const F second = set(root_mean_square_inverse(detour + at, width, m.eps));
    for (int64_t i = 0; i < width; i += 16) {
      const F a = load(attended + at + i) * first * (load(n.weight + i) + set(n.offset));
      const F d = load(detour + at + i) * second * (load(m.weight + i) + set(m.offset));
      const F y = (load(active + at + i) + a) + (load(x + at + i) + d);
      store(out + at + i, y / set(1.41421356237f));
    }
    norm_row(out + at, next, width, normed + at);
  }
}

// What a token's gates have to pass: mean + cutoff * std.
static float threshold(const float* gates, int64_t width, float cutoff) {
  F total = set(0), squares = set(0);
  for (int64_t i = 0; i < width; i += 16) total = total + load(gates + i);
  const float mean = sum(total) / (float)width;
  for (int64_t i = 0; i < width; i += 16) {
    const F off = load(gates + i) - set(mean);
    squares = fma(off, off, squares);
  }
  return mean + std::sqrt(sum(squares) / (float)width) * cutoff;
}

// How far gates [begin, end) lie above it, and zero below. The larger of zero and NaN is NaN.
static void strongest(float* gates, float least, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16)
    store(gates + i, larger(set(0), load(gates + i) - set(least)));
}

// gates = gelu(gates) * informed, whose tokens lie `stride` apart.
static void inform(Worker& worker, float* gates, const float* informed, int64_t stride,
                   int64_t tokens, int64_t width) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++)
    for (int64_t i = 0; i < width; i += 16)
      store(gates + t * width + i,
            gelu(load(gates + t * width + i)) * load(informed + t * stride + i));
}

// Every stream but the first gains norm(y).
static void add_to_others(Worker& worker, float* const* streams, const float* y, const Norm& n,
                          int64_t tokens, int64_t width) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    const int64_t at = t * width;
    const F inverse = set(root_mean_square_inverse(y + at, width, n.eps));
    for (int64_t i = 0; i < width; i += 16) {
      const F add = load(y + at + i) * inverse * (load(n.weight + i) + set(n.offset));
      for (int s = 1; s < kStreams; s++)
        store(streams[s] + at + i, load(streams[s] + at + i) + add);
    }
  }
}

// x with the root mean square of `like`, token by token; or their sum with what is there, scaled.
static void rescale(Worker& worker, const float* x, const float* like, int64_t tokens,
                    int64_t width, float share, bool add, float* out) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    const int64_t at = t * width;
    F own = set(0), target = set(0);
    for (int64_t i = at; i < at + width; i += 16) {
      own = fma(load(x + i), load(x + i), own);
      target = fma(load(like + i), load(like + i), target);
    }
    const float mean = sum(own) / (float)width;
    const float ratio =
        std::sqrt(sum(target) / (float)width) / std::sqrt(mean > 1e-5f ? mean : 1e-5f) * share;
    for (int64_t i = at; i < at + width; i += 16) {
      const F y = load(x + i) * set(ratio);
      store(out + i, add ? load(out + i) + y : y);
    }
  }
}

// The vectors that layers are told, each P wide: (norm(projected / sqrt D) + looked_up * sqrt P) /
// sqrt 2.
static void combine(float* projected, const float* looked_up, const Norm& n, float projected_scale,
                    float table_scale, int64_t count, int64_t width) {
  for (int64_t t = 0; t < count; t++) {
    float* p = projected + t * width;
    const float* table = looked_up + t * width;
    for (int64_t i = 0; i < width; i += 16) store(p + i, load(p + i) * set(projected_scale));
    norm_row(p, n, width, p);
    for (int64_t i = 0; i < width; i += 16) {
      const F y = fma(load(table + i), set(table_scale), load(p + i));
      store(p + i, y * set(0.70710678118f));
    }
  }
}

}  // namespace GEMELO_ISA
