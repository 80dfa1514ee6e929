// GEMV of rows that are chosen token by token: the feed-forward's second matrix in Gemma 3n's
// sparse layers.
//
// A gate that its token's cutoff closes makes a neuron zero whatever its row says, so a token reads
// one row in twenty. A thread goes through its neurons band by band, so that a row that several
// tokens want is read from memory once, and of what it multiplies with a row each token has the
// bits that it would have alone.

#pragma once

#include "gemm/rows.h"
#include "ops/altup.h"

namespace GEMELO_ISA {

constexpr int64_t kLiveBytes = 1 << 18;  // of rows that stay near for all tokens

// The gates [begin, end) of one token that its cutoff lets through, as their numbers; how many.
static inline int64_t find_live(float* gates, float cutoff, int64_t begin, int64_t end,
                                int64_t* live) {
  int64_t count = 0;
  gaussian_topk(gates, cutoff, begin, end);
  for (int64_t i = begin; i < end; i++) {
    live[count] = i;
    count += gates[i] != 0;  // NaN is alive
  }
  return count;
}

// Live gates = gelu(gates) * what dot(rows, token, y) makes of their rows.
template <class Dot>
static void gate_live_rows(Worker& worker, int64_t tokens, const Matrix& up_proj,
                           const float* cutoffs, float* gates, const Dot& dot) {
  static thread_local gemelo::Scratch live_room, gate_room;
  int64_t begin, end;
  worker.share(up_proj.rows, 16, begin, end);
  const int64_t near = std::max<int64_t>(16, kLiveBytes / up_proj.stride / 16 * 16);
  const int64_t band = tokens > 1 ? near : end - begin;
  auto* live = live_room.room<int64_t>(std::min(band, end - begin) + 1);
  for (int64_t row = begin; row < end; row += band)
    for (int64_t t = 0; t < tokens; t++) {
      float* own = gates + t * up_proj.rows;
      const int64_t count = find_live(own, cutoffs[t], row, std::min(row + band, end), live);
      if (!count) continue;
      const int64_t width = (count + 15) / 16 * 16;
      float* strong = gate_room.room<float>(2 * width);
      float* up = strong + width;
      std::fill_n(strong, 2 * width, 0.0f);
      for (int64_t i = 0; i < count; i++) strong[i] = own[live[i]];
      Matrix rows = up_proj;
      rows.index = live;
      rows.rows = count;
      dot(rows, t, {up, count, false});
      gelu_and_mul(strong, up, 1, width, 0, width);
      for (int64_t i = 0; i < count; i++) own[live[i]] = strong[i];
    }
}

// Bytes as pairs for formats of blocks, floats as they are.
static gemelo::Packing live_packing(const Matrix& up_proj) {
  if (gemelo::is_plain(up_proj.format)) return {};
  return {gemelo::Packing::kPairs, up_proj.format};
}

static void gate_live(Worker& worker, const Activations& x, const void* packed, int64_t tokens,
                      const Matrix& up_proj, const float* cutoffs, float* gates) {
  with_blocks(up_proj.format, [&]<class Q>(std::type_identity<Q>) {
    const int64_t span = pairs_of(up_proj.columns);
    gate_live_rows(worker, tokens, up_proj, cutoffs, gates,
                   [&](const Matrix& rows, int64_t token, const Activations& y) {
                     dot_rows<Q>(rows, 0, rows.rows, (const Pair*)packed + token * span, 1, y);
                   });
  });
  with_floats(up_proj.format, [&]<class W>(std::type_identity<W>) {
    gate_live_rows(worker, tokens, up_proj, cutoffs, gates,
                   [&](const Matrix& rows, int64_t token, const Activations& y) {
                     const float* own = (const float*)x.data + token * x.stride;
                     float_rows<W>(rows, 0, rows.rows, own, x.stride, 1, y);
                   });
  });
}

}  // namespace GEMELO_ISA
