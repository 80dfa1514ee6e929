// A call of a program: pieces of sequences that take one step together.
//
// Each piece has a cache of its own, or several have one, one behind the other. A piece of at most
// kFewTokens is exact: its tokens take the paths that give them the bits of one token alone. Longer
// pieces are bulk, until only few of their tokens go on. Exact pieces come first among the step's
// tokens, and stay first when the others are let go.

#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/kernels.h"

namespace gemelo {

// Consecutive tokens of one sequence, as they are handed in.
struct CallPiece {
  std::shared_ptr<const KvCache> cache;
  int64_t position, tokens;
  int64_t logits_to_keep;       // of the last tokens, which go on after the last keys
  const int64_t* attend_until;  // (tokens): the last position that each sees; null: its own
  const float* inputs_embeds;   // (tokens, width) that stand for those of the ids; null: none
};

// The pieces of a step that still go on, and where their tokens lie in its buffers.
struct Batch {
  std::vector<Piece> pieces;
  int64_t num_exact = 0;  // of the pieces, which come first
  int64_t exact_tokens = 0, tokens = 0;

  // Add the last `kept` tokens of a piece.
  void add(const CallPiece& piece, int64_t kept);
  // Every position to its slot, before any layer runs: a piece sees what another one of its
  // sequence writes in the same step.
  void place() const;
  // What pieces have of the tokens [begin, end): body(index of the piece, first token in the piece,
  // first in the batch, how many).
  template <class Body>
  void by_pieces(int64_t begin, int64_t end, const Body& body) const {
    for (size_t i = 0; i < pieces.size(); i++) {
      const int64_t first = pieces[i].first, last = first + pieces[i].tokens;
      const int64_t from = std::max(begin, first), until = std::min(end, last);
      if (from < until) body(i, from - first, from, until - from);
    }
  }
};

struct Call {
  const int64_t* ids;  // of all pieces' tokens, one behind the other
  std::vector<CallPiece> pieces;
  std::optional<Matrix> per_layer_rows;  // Gemma 3n: its per-layer embeddings, (tokens * layers, P)
  float* scores;                         // of all pieces' kept tokens, one behind the other
  float* maxima;  // of every kMaximaBlock scores of a token, the last of fewer; or null
  std::atomic<bool> finite{true};  // whether all scores are

  // What is wrong with the pieces, or null.
  const char* fault() const;
  // All tokens, and those that go on after the last keys.
  Batch all() const;
  Batch kept() const;
};

}  // namespace gemelo
