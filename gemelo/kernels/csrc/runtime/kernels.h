// The kernel table: what every instruction set offers, as pointers to functions; one table is
// chosen when the library is loaded.

#pragma once

#include <cstddef>
#include <vector>

#include "gemm/formats.h"
#include "runtime/pool.h"

namespace gemelo {

constexpr int64_t kFewTokens = 16;    // up to here a piece of a sequence is exact
constexpr int64_t kRowGrain = 16;     // rows of a product are shared out in sixteens
constexpr int64_t kMaximaBlock = 64;  // scores that have a maximum of their own

// y (tokens, rows) = x (tokens, columns) times w transposed.
struct Product {
  Activations x;
  int64_t tokens;
  Matrix w;
  Activations y;
};

// How a token is computed, as its piece of a sequence says: exactly, so that its bits are those of
// the token alone, or in bulk, as is fastest where there are many.
enum class Path { kExact, kBulk };

// How activations lie for the micro-kernel that takes them: as they are; as bytes, in pairs of
// blocks for rows or in fours for panels; as floats side by side; or as bfloat16 tiles.
struct Packing {
  enum Form { kNone, kPairs, kFours, kFloats, kTiles } form = kNone;
  Format format = kF32;  // of the weights that bytes are for, the first of those that take the same
  bool operator==(const Packing&) const = default;
};

struct Norm {
  const float* weight;  // null: the root mean square alone
  float offset, eps;
};

// What the numbers of a KV cache are stored as (attention/kv_cache.h).
enum class CacheFormat { kF32, kBF16, kInt8 };

enum class LayerType { kSliding, kFull };  // of attention
constexpr int kLayerTypes = 2;

// A layer's keys, or values: (slots, heads, d), and of signed bytes their scales, half precision
// (slots, heads).
struct KvTensor {
  void* numbers;
  uint16_t* scales;
};

struct KvLayer {
  KvTensor k, v;
};

// What lies in the slots of the layers of one type: positions (capacity), -1 where there is none.
// Position p lies in slot p mod capacity.
struct SlotPositions {
  int64_t *positions, capacity, used;
};

// Keys and values of one sequence, of all layers that own some.
struct KvCache {
  std::vector<KvLayer> layers;
  SlotPositions slots[kLayerTypes];
  CacheFormat format;
  int64_t heads, d;
};

// Consecutive tokens of one sequence among those of a step.
struct Piece {
  const KvCache* cache;
  int64_t first, tokens;        // where its tokens lie among the step's, and how many there are
  int64_t position;             // of its first token
  const int64_t* attend_until;  // (tokens): the last position that each sees; null: its own

  int64_t until(int64_t token) const {
    return attend_until ? attend_until[token] : position + token;
  }
};

constexpr int kStreams = 4;

// One layer's coefficients, float: modality_router (streams, width), prediction_coefs (streams *
// streams, streams), correction_coefs (streams, streams), correct_output_scale (width).
struct AltUp {
  Norm router_norm;
  const float *modality_router, *prediction_coefs, *correction_coefs, *correct_output_scale;
};

// Attention of a step's tokens in one layer, q and out (tokens, heads * d). All caches are of one
// format and shape.
struct Attend {
  const float* q;
  const Piece* pieces;  // exact ones first
  int64_t num_exact, num_pieces;
  int layer;  // that owns the keys
  LayerType layer_type;
  int64_t heads, window;  // window 0: all
  float scale;
  float* out;
};

// The functions that take a worker are called by all threads of a job, each doing its share.
struct Kernels {
  const char* name;
  void (*product)(const Product& product);
  // The rows `ids` of w as floats or bfloat16 (count, columns).
  void (*gather)(const Matrix& w, const int64_t* ids, int64_t count, const Activations& y);

  // Products in two halves, so that several matrices share the first: activations are packed, in
  // packed_bytes of room, and multiplied. Where tokens take no packing, multiply_unpacked does the
  // product whole. one_path says whether both paths sum up the same, as bulk tokens are packed.
  Packing (*packing_for)(const Matrix& w, Path path, int64_t tokens);
  bool (*one_path)(const Matrix& w);
  size_t (*packed_bytes)(Packing packing, int64_t tokens, int64_t columns);
  void (*pack)(Worker& worker, const Activations& x, int64_t tokens, int64_t columns,
               Packing packing, void* packed);
  void (*multiply)(Worker& worker, const void* packed, Packing packing, int64_t tokens,
                   const Matrix& w, const Activations& y);
  void (*multiply_unpacked)(Worker& worker, const Activations& x, int64_t tokens, const Matrix& w,
                            const Activations& y);

  // Bytes of a panel of sixteen rows, 0 for formats that have none; and rows made into panels, the
  // `first` of a matrix and those behind it, or into strips, `stride` bytes for a line of all.
  size_t (*panel_bytes)(Format format, int64_t columns);
  void (*interleave)(const Matrix& rows, int64_t first, int64_t stride, uint8_t* out);

  // Weights in rows as floats, out (rows, columns); and floats as weights, one row behind the
  // other: q8_0, q4_0 or plain floats. Whether all numbers have a place there; as plain floats any
  // has. To the bit what gemelo/kernels/quants.py defines.
  void (*unpack)(const Matrix& w, float* out);
  bool (*pack_weights)(const float* x, int64_t rows, int64_t columns, Format format, uint8_t* out);

  // Reads memory and does nothing with it: how fast a product could be. Returns some number.
  int64_t (*read)(const uint8_t* p, int64_t bytes);

  // ops/elementwise.h
  void (*norm)(Worker& worker, const float* x, const Norm& n, int64_t tokens, int64_t width,
               float* out);
  void (*add_norm)(Worker& worker, float* x, const float* y, const Norm& n, const Norm* next,
                   int64_t tokens, int64_t width, float* out);
  void (*gelu_and_mul)(float* gates, const float* up, int64_t tokens, int64_t width, int64_t begin,
                       int64_t end);
  void (*softcap)(float* x, float cap, int64_t begin, int64_t end);
  bool (*all_finite)(const float* x, int64_t begin, int64_t end);
  bool (*block_maxima)(const float* x, int64_t begin, int64_t end, float* maxima);
  int64_t (*argmax)(const float* x, int64_t begin, int64_t end);
  void (*norm_rope_heads)(Worker& worker, float* x, int64_t tokens, int64_t count, int64_t d,
                          const Norm& n, const float* rotations);
  void (*store_kv)(Worker& worker, const float* k, const float* v, const Piece* pieces,
                   int64_t num_pieces, int layer, LayerType layer_type);

  // attention/: `room` has attend_bytes of it.
  size_t (*attend_bytes)(const Attend& a);
  void (*attend)(Worker& worker, const Attend& a, void* room);

  // ops/altup.h
  void (*altup_predict)(Worker& worker, const float* const* streams, float* const* predicted,
                        const AltUp& a, int64_t tokens, int64_t width);
  void (*altup_correct)(Worker& worker, float* const* streams, const float* const* predicted,
                        const float* activated, const AltUp& a, int64_t tokens, int64_t width,
                        float* scaled);
  void (*laurel_residual)(Worker& worker, const float* active, const float* attended, const Norm& n,
                          const float* x, const float* laurel, const Norm& m, const Norm& next,
                          int64_t tokens, int64_t width, float* out, float* normed);
  float (*gaussian_cutoff)(const float* gates, int64_t width, float std_multiplier);
  void (*gaussian_topk)(float* gates, float cutoff, int64_t begin, int64_t end);
  // gemm/live_rows.h: exact tokens, packed in live_packing where up_proj takes one.
  Packing (*live_packing)(const Matrix& up_proj);
  void (*gate_live)(Worker& worker, const Activations& x, const void* packed, int64_t tokens,
                    const Matrix& up_proj, const float* cutoffs, float* gates);
  void (*gate_per_layer_input)(Worker& worker, float* gates, const float* per_layer_inputs,
                               int64_t stride, int64_t tokens, int64_t width);
  void (*add_to_others)(Worker& worker, float* const* streams, const float* y, const Norm& n,
                        int64_t tokens, int64_t width);
  void (*match_magnitude)(Worker& worker, const float* x, const float* target, int64_t tokens,
                          int64_t width, float scale, bool add, float* out);
  void (*per_layer_inputs)(float* projected, const float* embedded, const Norm& n,
                           float projected_scale, float table_scale, int64_t count, int64_t width);
};

// By name ("generic", "avx2", "avx2_vnni", "avx512", "amx", "neon"), or null if this machine
// cannot.
const Kernels* kernels_named(const char* name);
// The names that this machine can run, the fastest first; null at the end.
const char* const* runnable();

}  // namespace gemelo
