// Loops unrolled by the compiler's front end, before it looks at arrays, so that small arrays of
// vectors become registers: each<4>([&](auto i) { ... sums[i] ... }).

#pragma once

#include <utility>

#define GEMELO_INLINE __attribute__((always_inline))

namespace GEMELO_ISA {

template <class Body, int... i>
static inline GEMELO_INLINE void each_of(const Body& body, std::integer_sequence<int, i...>) {
  (body(std::integral_constant<int, i>{}), ...);
}

template <int count, class Body>
static inline GEMELO_INLINE void each(const Body& body) {
  each_of(body, std::make_integer_sequence<int, count>{});
}

}  // namespace GEMELO_ISA
