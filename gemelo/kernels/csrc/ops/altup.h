// Gemma 3n's operations beside products: AltUp (arXiv 2301.13310) predicts and corrects streams,
// LAuReL's low-rank residual, the gaussian top-k of sparse layers, per-layer inputs. Names are
// transformers'.

#pragma once

#include "ops/elementwise.h"

namespace GEMELO_ISA {

using gemelo::AltUp;

constexpr int kStreams = gemelo::kStreams;

// tanh of the router's view of one token: kStreams numbers.
static inline void router_modalities(const float* x, const AltUp& a, int64_t width, float* out) {
  const float inverse = root_mean_square_inverse(x, width, a.router_norm.eps) / (float)width;
  for (int s = 0; s < kStreams; s++) {
    F total = set(0);
    for (int64_t i = 0; i < width; i += 16) {
      const F normed = load(x + i) * (load(a.router_norm.weight + i) + set(a.router_norm.offset));
      total = fma(normed, load(a.modality_router + s * width + i), total);
    }
    out[s] = std::tanh(sum(total) * inverse);
  }
}

// predicted = streams + a mixture of all of them.
static void altup_predict(Worker& worker, const float* const* streams, float* const* predicted,
                          const AltUp& a, int64_t tokens, int64_t width) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    float seen[kStreams], mix[kStreams][kStreams];
    router_modalities(streams[0] + t * width, a, width, seen);
    for (int i = 0; i < kStreams * kStreams; i++) {
      float total = 0;
      for (int s = 0; s < kStreams; s++) total += a.prediction_coefs[i * kStreams + s] * seen[s];
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
static void altup_correct(Worker& worker, float* const* streams, const float* const* predicted,
                          const float* activated, const AltUp& a, int64_t tokens, int64_t width,
                          float* scaled) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    float seen[kStreams], coefs[kStreams];
    router_modalities(activated + t * width, a, width, seen);
    for (int o = 0; o < kStreams; o++) {
      coefs[o] = 1;
      for (int s = 0; s < kStreams; s++) coefs[o] += a.correction_coefs[o * kStreams + s] * seen[s];
    }
    for (int64_t i = 0; i < width; i += 16) {
      const int64_t at = t * width + i;
      const F found = load(activated + at) - load(predicted[0] + at);
      for (int o = 0; o < kStreams; o++) {
        const F y = fma(found, set(coefs[o]), load(predicted[o] + at));
        store(streams[o] + at, y);
        if (!o) store(scaled + at, y * load(a.correct_output_scale + i));
      }
    }
  }
}

// out = ((active + norm(attended)) + (x + norm(laurel))) / sqrt 2, and normed = norm(out) for the
// feed-forward.
static void laurel_residual(Worker& worker, const float* active, const float* attended,
                            const Norm& n, const float* x, const float* laurel, const Norm& m,
                            const Norm& next, int64_t tokens, int64_t width, float* out,
                            float* normed) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    const int64_t at = t * width;
    const F first = set(root_mean_square_inverse(attended + at, width, n.eps));
    const F second = set(root_mean_square_inverse(laurel + at, width, m.eps));
    for (int64_t i = 0; i < width; i += 16) {
      const F a = load(attended + at + i) * first * (load(n.weight + i) + set(n.offset));
      const F d = load(laurel + at + i) * second * (load(m.weight + i) + set(m.offset));
      const F y = (load(active + at + i) + a) + (load(x + at + i) + d);
      store(out + at + i, y / set(1.41421356237f));
    }
    norm_row(out + at, next, width, normed + at);
  }
}

// What a token's gates have to pass: mean + std_multiplier * std.
static float gaussian_cutoff(const float* gates, int64_t width, float std_multiplier) {
  F total = set(0), squares = set(0);
  for (int64_t i = 0; i < width; i += 16) total = total + load(gates + i);
  const float mean = sum(total) / (float)width;
  for (int64_t i = 0; i < width; i += 16) {
    const F off = load(gates + i) - set(mean);
    squares = fma(off, off, squares);
  }
  return mean + std::sqrt(sum(squares) / (float)width) * std_multiplier;
}

// How far gates [begin, end) lie above it, and zero below. The larger of zero and NaN is NaN.
static void gaussian_topk(float* gates, float cutoff, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16)
    store(gates + i, larger(set(0), load(gates + i) - set(cutoff)));
}

// gates = gelu(gates) * per_layer_inputs, whose tokens lie `stride` apart.
static void gate_per_layer_input(Worker& worker, float* gates, const float* per_layer_inputs,
                                 int64_t stride, int64_t tokens, int64_t width) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++)
    for (int64_t i = 0; i < width; i += 16)
      store(gates + t * width + i,
            gelu(load(gates + t * width + i)) * load(per_layer_inputs + t * stride + i));
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

// x with the root mean square of `target`, token by token; or their sum with what is there, scaled.
static void match_magnitude(Worker& worker, const float* x, const float* target, int64_t tokens,
                            int64_t width, float scale, bool add, float* out) {
  int64_t begin, end;
  worker.share(tokens, 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    const int64_t at = t * width;
    F own = set(0), wanted = set(0);
    for (int64_t i = at; i < at + width; i += 16) {
      own = fma(load(x + i), load(x + i), own);
      wanted = fma(load(target + i), load(target + i), wanted);
    }
    const float mean = sum(own) / (float)width;
    const float ratio =
        std::sqrt(sum(wanted) / (float)width) / std::sqrt(mean > 1e-5f ? mean : 1e-5f) * scale;
    for (int64_t i = at; i < at + width; i += 16) {
      const F y = load(x + i) * set(ratio);
      store(out + i, add ? load(out + i) + y : y);
    }
  }
}

// Per-layer inputs, each P wide: (norm(projected / sqrt D) + embedded * sqrt P) / sqrt 2.
static void per_layer_inputs(float* projected, const float* embedded, const Norm& n,
                             float projected_scale, float table_scale, int64_t count,
                             int64_t width) {
  for (int64_t t = 0; t < count; t++) {
    float* p = projected + t * width;
    const float* table = embedded + t * width;
    for (int64_t i = 0; i < width; i += 16) store(p + i, load(p + i) * set(projected_scale));
    norm_row(p, n, width, p);
    for (int64_t i = 0; i < width; i += 16) {
      const F y = fma(load(table + i), set(table_scale), load(p + i));
      store(p + i, y * set(0.70710678118f));
    }
  }
}

}  // namespace GEMELO_ISA
