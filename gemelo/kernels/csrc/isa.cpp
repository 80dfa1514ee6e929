// The kernel table of one instruction set: compiled once for each, with GEMELO_ISA its name, and
// the choice among kernels by format, layout and path.

#include <atomic>

#include "runtime/kernels.h"

#if defined(GEMELO_AVX512)
#include "simd/avx512.h"
#elif defined(GEMELO_AVX2)
#include "simd/avx2.h"
#elif defined(GEMELO_NEON)
#include "simd/neon.h"
#else
#include "simd/generic.h"
#endif

#include "attention/attend.h"
#include "gemm/convert.h"
#include "gemm/float_gemm.h"
#include "gemm/live_rows.h"
#include "gemm/panel_gemm.h"
#include "gemm/rows.h"
#include "gemm/sparse_columns.h"
#include "ops/altup.h"
#include "ops/elementwise.h"
#ifdef GEMELO_AVX512
#include "attention/attend_tiles.h"
#include "gemm/bf16_tiles.h"
#endif

namespace GEMELO_ISA {

using gemelo::Kernels;
using gemelo::Layout;
using gemelo::Packing;
using gemelo::Path;
using gemelo::Product;
using gemelo::Scratch;
using gemelo::Worker;

// Tokens [first, last) in pairs.
template <class Q>
static void pack_pairs(const Activations& x, int64_t first, int64_t last, int64_t columns,
                       Pair* pairs) {
  for (int64_t t = first; t < last; t++)
    quantise(x, t, columns, Q::kZero, Q::kMinima, pairs + t * pairs_of(columns));
}

template <class Q>
static void dot_blocks(Worker& worker, const Pair* pairs, int64_t tokens, const Matrix& w,
                       const Activations& y) {
  worker.deal(w.rows, gemelo::kRowGrain,
              [&](int64_t begin, int64_t end) { dot_rows<Q>(w, begin, end, pairs, tokens, y); });
}

// Floats are multiplied where they lie, if their rows end with a register.
template <class W>
static void dot_floats(Worker& worker, const Activations& x, int64_t tokens, const Matrix& w,
                       const Activations& y) {
  static thread_local Scratch room;
  const bool whole = !x.bf16 && w.columns % 16 == 0;
  const int64_t span = whole ? x.stride : (w.columns + 15) / 16 * 16;
  float* inputs = whole ? (float*)x.data : room.room<float>(span * tokens);
  for (int64_t t = 0; t < tokens && !whole; t++) copy_row(x, t, w.columns, inputs + t * span);
  worker.deal(w.rows, gemelo::kRowGrain, [&](int64_t begin, int64_t end) {
    float_rows<W>(w, begin, end, inputs, span, tokens, y);
  });
}

static void multiply_unpacked(Worker& worker, const Activations& x, int64_t tokens, const Matrix& w,
                              const Activations& y) {
  static thread_local Scratch room;
  if (w.layout != Layout::kRows)
    return with_panels(w.format, [&]<class P>(std::type_identity<P>) {
      if (w.layout == Layout::kPanels) multiply_one<P>(worker, x, w, y);
      else multiply_strips<P>(worker, x, tokens, w, y);
    });
  with_blocks(w.format, [&]<class Q>(std::type_identity<Q>) {
    Pair* pairs = room.room<Pair>(pairs_of(w.columns) * tokens);
    pack_pairs<Q>(x, 0, tokens, w.columns, pairs);
    dot_blocks<Q>(worker, pairs, tokens, w, y);
  });
  with_floats(w.format,
              [&]<class W>(std::type_identity<W>) { dot_floats<W>(worker, x, tokens, w, y); });
}

// ---- tokens that are packed for all threads -----------------------------------------------------

static Packing bytes_for(Packing::Form form, gemelo::Format format) {
  return {form, format == gemelo::kQ5_K ? gemelo::kQ4_K : format};
}

// Exact tokens: few are packed by every thread for itself, more once for all, into the same bytes.
static Packing exact_packing(const Matrix& w, int64_t tokens) {
  if (gemelo::is_plain(w.format)) return {};
  if (tokens <= (w.layout == Layout::kPanels ? 1 : gemelo::kFewTokens)) return {};
  return bytes_for(w.layout == Layout::kRows ? Packing::kPairs : Packing::kFours, w.format);
}

static Packing bulk_packing(const Matrix& w) {
#ifdef GEMELO_AVX512
  if (in_tiles(w.format)) return {Packing::kTiles};
#endif
  if (gemelo::is_plain(w.format)) return {Packing::kFloats};
  return bytes_for(Packing::kFours, w.format);
}

static Packing packing_for(const Matrix& w, Path path, int64_t tokens) {
  return path == Path::kExact ? exact_packing(w, tokens) : bulk_packing(w);
}

static bool one_path(const Matrix& w) {
  return w.layout != Layout::kRows && bulk_packing(w).form == Packing::kFours;
}

// How many tokens go side by side: a kernel for eight takes as long for two.
template <class Body>
static void with_micro_tile(int64_t tokens, const Body& body) {
  constexpr int kHalf = kMicroTokens / 2;
  if (tokens <= kHalf) body(std::integral_constant<int, kHalf>{});
  else body(std::integral_constant<int, kMicroTokens>{});
}

static size_t packed_bytes(Packing packing, int64_t tokens, int64_t columns) {
  size_t bytes = 0;
  switch (packing.form) {
    case Packing::kNone: break;
    case Packing::kPairs: bytes = sizeof(Pair) * tokens * pairs_of(columns); break;
    case Packing::kFloats: bytes = packed_float_bytes(tokens, columns); break;
    case Packing::kTiles:
#ifdef GEMELO_AVX512
      bytes = sizeof(Tile) * ((tokens + 31) / 32 * 2) * ((columns + 31) / 32);
#endif
      break;
    case Packing::kFours:
      with_panels(packing.format, [&]<class P>(std::type_identity<P>) {
        with_micro_tile(tokens, [&](auto T) {
          const int64_t micro_tiles = (tokens + T - 1) / T;
          bytes = sizeof(TokenBlock<T>) * micro_tiles * units_of<P>(columns) * P::kBlocks;
        });
      });
  }
  return bytes;
}

static void pack(Worker& worker, const Activations& x, int64_t tokens, int64_t columns,
                 Packing packing, void* packed) {
  switch (packing.form) {
    case Packing::kNone: return;
    case Packing::kFloats: return pack_floats(worker, x, tokens, columns, (float*)packed);
    case Packing::kTiles:
#ifdef GEMELO_AVX512
      pack_tiles(worker, x, tokens, columns, packed);
#endif
      return;
    case Packing::kPairs:
      return with_blocks(packing.format, [&]<class Q>(std::type_identity<Q>) {
        int64_t begin, end;
        worker.share(tokens, 1, begin, end);
        pack_pairs<Q>(x, begin, end, columns, (Pair*)packed);
      });
    case Packing::kFours:
      return with_panels(packing.format, [&]<class P>(std::type_identity<P>) {
        with_micro_tile(tokens,
                        [&](auto T) { pack_matrix<P, T>(worker, x, tokens, columns, packed); });
      });
  }
}

#ifdef GEMELO_AVX512
static void multiply_in_tiles(Worker& worker, const void* packed, int64_t tokens, const Matrix& w,
                              const Activations& y) {
#ifdef GEMELO_AMX
  with_panels(w.format, [&]<class P>(std::type_identity<P>) {
    multiply_tiles<BlockTiles<P>>(worker, packed, tokens, w, y);
  });
#endif
  with_floats(w.format, [&]<class W>(std::type_identity<W>) {
    multiply_tiles<FloatTiles<W>>(worker, packed, tokens, w, y);
  });
}
#endif

static void multiply(Worker& worker, const void* packed, Packing packing, int64_t tokens,
                     const Matrix& w, const Activations& y) {
  switch (packing.form) {
    case Packing::kNone: return;
    case Packing::kTiles:
#ifdef GEMELO_AVX512
      multiply_in_tiles(worker, packed, tokens, w, y);
#endif
      return;
    case Packing::kFloats:
      return with_floats(w.format, [&]<class W>(std::type_identity<W>) {
        multiply_floats<W>(worker, (const float*)packed, tokens, w, y);
      });
    case Packing::kPairs:
      return with_blocks(w.format, [&]<class Q>(std::type_identity<Q>) {
        dot_blocks<Q>(worker, (const Pair*)packed, tokens, w, y);
      });
    case Packing::kFours:
      return with_panels(w.format, [&]<class P>(std::type_identity<P>) {
        with_micro_tile(tokens, [&](auto T) {
          multiply_packed<P, T>(worker, (const TokenBlock<T>*)packed, tokens, w, y);
        });
      });
  }
}

// ---- attention ----------------------------------------------------------------------------------

#ifdef GEMELO_AVX512
// Whether bulk tokens go through bfloat16 tiles: never over a cache of floats, which is asked for
// where every rounding matters.
static bool attends_in_tiles(const Attend& a) {
  return a.num_exact < a.num_pieces && exact_end(a)->cache->format != gemelo::CacheFormat::kF32;
}
#endif

// Parts of exact tokens, then tiles of bulk pieces' keys and values.
static size_t attend_bytes(const Attend& a) {
  const size_t exact = (exact_bytes(a) + 63) / 64 * 64;
#ifdef GEMELO_AVX512
  if (attends_in_tiles(a)) return exact + tile_attend_bytes(a);
#endif
  return exact;
}

static void attend(Worker& worker, const Attend& a, void* room) {
  auto* parts = (float*)room;
  if (a.num_exact) attend_exact(worker, a, parts);
#ifdef GEMELO_AVX512
  auto* tiles = (Tile*)((uint8_t*)room + (exact_bytes(a) + 63) / 64 * 64);
  if (attends_in_tiles(a)) {
    pack_caches(worker, a, tiles);
    worker.barrier();
    attend_tiles(worker, a, tiles);
    if (a.num_exact) merge_exact(worker, a, parts);
    return;
  }
#endif
  if (a.num_exact < a.num_pieces) attend_many(worker, a);
  if (!a.num_exact) return;
  worker.barrier();
  merge_exact(worker, a, parts);
}

static void product(const Product& p) {
  const bool few = p.tokens <= gemelo::kFewTokens;
  const Packing packing = packing_for(p.w, few ? Path::kExact : Path::kBulk, p.tokens);
  if (packing.form == Packing::kNone)
    return gemelo::parallel(
        [&](Worker& worker) { multiply_unpacked(worker, p.x, p.tokens, p.w, p.y); });
  static thread_local Scratch room;
  void* packed = room.room<uint8_t>(packed_bytes(packing, p.tokens, p.w.columns));
  gemelo::parallel([&](Worker& worker) {
    pack(worker, p.x, p.tokens, p.w.columns, packing, packed);
    worker.barrier();
    multiply(worker, packed, packing, p.tokens, p.w, p.y);
  });
}

static size_t panel_bytes(gemelo::Format format, int64_t columns) {
  size_t bytes = 0;
  with_panels(format,
              [&]<class P>(std::type_identity<P>) { bytes = P::kUnit * units_of<P>(columns); });
  return bytes;
}

static void interleave(const Matrix& rows, int64_t first, int64_t stride, uint8_t* out) {
  gemelo::parallel([&](Worker& worker) {
    int64_t begin, end;
    worker.share(rows.rows, stride ? kStripPanels * kPanelRows : kPanelRows, begin, end);
    with_panels(rows.format, [&]<class P>(std::type_identity<P>) {
      interleave_rows<P>(rows, begin, end, first, stride, out);
    });
  });
}

template <class Q>
static void gather_blocks(const Matrix& w, const int64_t* ids, int64_t count,
                          const Activations& y) {
  for (int64_t i = 0; i < count; i++) {
    const uint8_t* row = w.row(ids[i]);
    for (int64_t at = 0; at < w.columns; at += Q::kWeights) {
      const int64_t there = w.columns - at < Q::kWeights ? w.columns - at : Q::kWeights;
      const uint8_t* p = row + at / Q::kWeights * Q::kBytes;
      float values[Q::kWeights];
      if (there == Q::kWeights) expand(Q{p}, values);
      else expand(Q{Tail<Q>(p, (int)there).bytes}, values);
      for (int64_t j = 0; j < there; j += 16) store16(y, i, at + j, load(values + j));
    }
  }
}

template <class W>
static void gather_floats(const Matrix& w, const int64_t* ids, int64_t count,
                          const Activations& y) {
  for (int64_t i = 0; i < count; i++) {
    const uint8_t* row = w.row(ids[i]);
    const int64_t whole = w.columns / 16 * 16;
    for (int64_t at = 0; at < whole; at += 16) store16(y, i, at, W::at(row + at * W::kBytes));
    if (whole == w.columns) continue;
    alignas(64) uint8_t rest[64] = {};
    float values[16];
    std::memcpy(rest, row + whole * W::kBytes, (w.columns - whole) * W::kBytes);
    store(values, W::at(rest));
    for (int64_t at = whole; at < w.columns; at++) put(y, i, at, values[at - whole]);
  }
}

static void gather(const Matrix& w, const int64_t* ids, int64_t count, const Activations& y) {
  if (w.layout != Layout::kRows)
    return with_panels(w.format, [&]<class P>(std::type_identity<P>) {
      for (int64_t i = 0; i < count; i++) gather_row<P>(w, ids[i], y, i);
    });
  with_blocks(w.format,
              [&]<class Q>(std::type_identity<Q>) { gather_blocks<Q>(w, ids, count, y); });
  with_floats(w.format,
              [&]<class W>(std::type_identity<W>) { gather_floats<W>(w, ids, count, y); });
}

static int64_t read(const uint8_t* p, int64_t bytes) {
  std::atomic<int64_t> all{0};
  gemelo::parallel([&](Worker& worker) {
    int64_t begin, end;
    worker.share(bytes / 256, 1, begin, end);
    const B ones = where(~uint64_t{0}, 1);
    I sums[4] = {zeros(), zeros(), zeros(), zeros()};
    for (int64_t i = begin; i < end; i++)
      each<4>([&](auto j) GEMELO_INLINE {
        const uint8_t* line = p + 256 * i + 64 * j;
        prefetch_ahead(line);
        sums[j] = dot(sums[j], load_bytes(line), ones);
      });
    for (const I& sum : sums) {
      int32_t lanes[16];
      store(lanes, sum);
      all += lanes[0];
    }
  });
  return all;
}

#define GEMELO_TEXT_(x) #x
#define GEMELO_TEXT(x) GEMELO_TEXT_(x)

extern const Kernels kernels;
const Kernels kernels = {
    .name = &GEMELO_TEXT(GEMELO_ISA)[4],  // behind "isa_"
    .product = product,
    .gather = gather,
    .packing_for = packing_for,
    .one_path = one_path,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .multiply = multiply,
    .multiply_unpacked = multiply_unpacked,
    .panel_bytes = panel_bytes,
    .interleave = interleave,
    .unpack = unpack,
    .pack_weights = pack_weights,
    .read = read,
    .norm = norm,
    .add_norm = add_norm,
    .gelu_and_mul = gelu_and_mul,
    .softcap = softcap,
    .all_finite = all_finite,
    .block_maxima = block_maxima,
    .argmax = argmax,
    .norm_rope_heads = norm_rope_heads,
    .store_kv = store_kv,
    .attend_bytes = attend_bytes,
    .attend = attend,
    .altup_predict = altup_predict,
    .altup_correct = altup_correct,
    .laurel_residual = laurel_residual,
    .gaussian_cutoff = gaussian_cutoff,
    .gaussian_topk = gaussian_topk,
    .live_packing = live_packing,
    .gate_live = gate_live,
    .gate_per_layer_input = gate_per_layer_input,
    .add_to_others = add_to_others,
    .match_magnitude = match_magnitude,
    .per_layer_inputs = per_layer_inputs,
};

}  // namespace GEMELO_ISA
