// A matrix of weights: its block format, by the number it has in a GGUF file, its layout, and where
// it lies.

#pragma once

#include <cstddef>
#include <cstdint>

namespace gemelo {

enum Format {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ5_0 = 6,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// Whether weights are floats, each for itself, and no blocks.
constexpr bool is_plain(Format format) {
  return format == kF32 || format == kF16 || format == kBF16;
}

// Rows of blocks, usually in a mapped file; or panels of sixteen rows, or strips of their columns
// (gemm/panels.h).
enum class Layout { kRows, kPanels, kStrips };

// Weights somewhere in memory; `rows` and `columns` may be leading parts.
struct Matrix {
  const uint8_t* blocks;
  int64_t stride;  // bytes from row to row, from panel to panel, or of a line of all panels
  Format format;
  int64_t rows, columns;
  const int64_t* index;  // where row r lies, if not at r; for rows only
  Layout layout;

  const uint8_t* row(int64_t r) const { return blocks + (index ? index[r] : r) * stride; }
};

// Activations (tokens, columns), float or bfloat16, rows `stride` elements apart.
struct Activations {
  void* data;
  int64_t stride;
  bool bf16;
};

}  // namespace gemelo
