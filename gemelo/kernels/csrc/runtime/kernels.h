// What every instruction set offers, as a table of functions; one table is chosen when the library
// is loaded.

#pragma once

#include <cstddef>

#include "gemm/formats.h"
#include "runtime/pool.h"

namespace gemelo {

constexpr int64_t kFewTokens = 16;  // up to here a product is a set of dot products
constexpr int64_t kShare = 16;      // its rows are shared out in sixteens

// y (tokens, rows) = x (tokens, columns) times w transposed.
struct Product {
  Activations x;
  int64_t tokens;
  Matrix w;
  Activations y;
};

struct Norm {
  const float* weight;  // null: the root mean square alone
  float offset, eps;
};

// What the numbers of a cache are kept as (attention/kv_cache.h), in the order of gemelo/engine/graphs.py.
enum CacheFormat { kFloats, kBfloats, kLevels };

// A layer's keys, or values: (rows, slots, heads, d), and where those are levels their scales, half
// precision (rows, slots, heads).
struct Kept {
  void* numbers;
  uint16_t* scales;
};

// Keys and values of one layer.
struct Cache {
  Kept k, v;
  int64_t row_stride;  // in numbers, from row to row
  CacheFormat format;
  int64_t heads, d;
};

constexpr int kStreams = 4;

// One layer's coefficients, float: route (streams, width), predict (streams * streams, streams),
// correct (streams, streams), output_scale (width).
struct AltUp {
  Norm router;
  const float *route, *predict, *correct, *output_scale;
};

struct Attend {
  const float* q;  // (tokens, heads * d)
  Cache cache;
  const int64_t* key_positions;  // (rows, slots), position_stride from row to row
  int64_t position_stride, slots;
  const int64_t *query_positions, *reach;       // (tokens): where each is, and the last it sees
  int64_t tokens, tokens_a_row, heads, window;  // window 0: all
  float scale;
  float* out;
};

// The functions that take a worker are called by all threads of a job, each doing its share.
struct Kernels {
  const char* name;
  void (*product)(const Product& product);
  // The rows `ids` of w as floats or bfloat16 (count, columns).
  void (*gather)(const Matrix& w, const int64_t* ids, int64_t count, const Activations& y);

  // Products in two halves, so that several matrices share the first: a packing is how tokens have
  // to be packed for w, in packed_bytes of room; where it is 0, `few` does the product whole.
  int (*packing)(const Matrix& w, int64_t tokens);
  size_t (*packed_bytes)(int packing, int64_t tokens, int64_t columns);
  void (*pack)(Worker& worker, const Activations& x, int64_t tokens, int64_t columns, int packing,
               void* packed);
  void (*multiply)(Worker& worker, const void* packed, int64_t tokens, const Matrix& w,
                   const Activations& y);
  void (*few)(Worker& worker, const Activations& x, int64_t tokens, const Matrix& w,
              const Activations& y);

  // Bytes of a panel of sixteen rows, 0 for formats that have none; and rows made into panels, the
  // `first` of a matrix and those behind it, or into strips, `stride` bytes for a line of all.
  size_t (*panel_bytes)(int format, int64_t columns);
  void (*interleave)(const Matrix& rows, int64_t first, int64_t stride, uint8_t* out);

  // Reads memory and does nothing with it: how fast a product could be. Returns some number.
  int64_t (*read)(const uint8_t* p, int64_t bytes);

  void (*norm)(Worker& worker, const float* x, const Norm& n, int64_t tokens, int64_t width,
               float* out);
  void (*add_norm)(Worker& worker, float* x, const float* y, const Norm& n, const Norm* next,
                   int64_t tokens, int64_t width, float* out);
  void (*gate)(float* gates, const float* up, int64_t tokens, int64_t width, int64_t begin,
               int64_t end);
  void (*softcap)(float* x, float cap, int64_t begin, int64_t end);
  bool (*finite)(const float* x, int64_t begin, int64_t end);
  int64_t (*largest_at)(const float* x, int64_t begin, int64_t end);
  void (*heads)(Worker& worker, float* x, int64_t tokens, int64_t count, int64_t d, const Norm& n,
                const float* angles);
  void (*keep)(Worker& worker, const float* k, const float* v, const Cache& cache,
               const int64_t* slots, int64_t tokens, int64_t tokens_a_row);
  // `room` has attend_bytes of it.
  size_t (*attend_bytes)(const Attend& a);
  void (*attend)(Worker& worker, const Attend& a, void* room);

  // Gemma 3n's own, described in ops/altup.h.
  void (*predict)(Worker& worker, const float* const* streams, float* const* predicted,
                  const AltUp& a, int64_t tokens, int64_t width);
  void (*correct)(Worker& worker, float* const* streams, const float* const* predicted,
                  const float* activated, const AltUp& a, int64_t tokens, int64_t width,
                  float* scaled);
  void (*meet)(Worker& worker, const float* active, const float* attended, const Norm& n,
               const float* x, const float* detour, const Norm& m, const Norm& next, int64_t tokens,
               int64_t width, float* out, float* normed);
  float (*threshold)(const float* gates, int64_t width, float cutoff);
  void (*strongest)(float* gates, float least, int64_t begin, int64_t end);
  void (*inform)(Worker& worker, float* gates, const float* informed, int64_t stride,
                 int64_t tokens, int64_t width);
  void (*add_to_others)(Worker& worker, float* const* streams, const float* y, const Norm& n,
                        int64_t tokens, int64_t width);
  void (*rescale)(Worker& worker, const float* x, const float* like, int64_t tokens, int64_t width,
                  float share, bool add, float* out);
  void (*combine)(float* projected, const float* looked_up, const Norm& n, float projected_scale,
                  float table_scale, int64_t count, int64_t width);
};

// By name ("generic", "avx2", "avx2_vnni", "avx512", "amx", "neon"), or null if this machine
// cannot.
const Kernels* kernels_named(const char* name);
// The names that this machine can run, the fastest first; null at the end.
const char* const* runnable();

}  // namespace gemelo
