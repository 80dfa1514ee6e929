// Software prefetch: how far ahead, and into which cache.
//
// A Xeon's core has more lines on their way to its second cache than to its first. So what is read
// from end to end is fetched twice there: early into the second, and then into the first. Zen's own
// prefetchers fill its second cache, and read up to a third less where they are helped: four lines
// ahead into the first are enough, and seven where lines are not used in the order they lie in.

#pragma once

#include <cstdint>

#include "simd/unroll.h"

namespace GEMELO_ISA {

// Bytes ahead of their use; 0 is none.
#ifdef GEMELO_AMX
constexpr int64_t kL1Ahead = 1152, kL1AheadUnordered = 1152, kL2Ahead = 4608;
#else
constexpr int64_t kL1Ahead = 256, kL1AheadUnordered = 448, kL2Ahead = 0;
#endif

// Whether plain floats of so many bytes are fetched ahead: those of two, which take half a line at a
// time, Zen reads a fifth slower for one token if they are, but faster for several.
constexpr bool fetches_floats(int bytes, int tokens) {
  return kL2Ahead || bytes == 4 || tokens > 1;
}

// What lies ahead of a line that is used now.
template <int64_t near = kL1Ahead>
static inline GEMELO_INLINE void prefetch_ahead(const uint8_t* line) {
  if (kL2Ahead) __builtin_prefetch(line + kL2Ahead, 0, 2);
  __builtin_prefetch(line + near);
}

// Part `part` of `parts` of the lines that lie ahead of `bytes`.
template <int part, int parts, int bytes, int64_t near = kL1Ahead>
static inline GEMELO_INLINE void prefetch_ahead(const uint8_t* p) {
  constexpr int lines = (bytes + 63) / 64;
  for (int i = part * lines / parts; i < (part + 1) * lines / parts; i++)
    prefetch_ahead<near>(p + 64 * i);
}

// What lies between two addresses, asked for line by line: rows of `lines` lines, with something
// to skip behind each.
struct Prefetcher {
  const uint8_t *at, *end;
  int64_t lines, skip, left = lines;

  GEMELO_INLINE void next_line() {
    if (at >= end) return;
    __builtin_prefetch(at, 0, 2);
    at += 64;
    if (!--left) at += skip, left = lines;
  }
};

// These bytes, whole.
static inline void prefetch(const uint8_t* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 2);
}

}  // namespace GEMELO_ISA
