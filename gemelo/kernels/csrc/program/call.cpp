// The pieces of a call, checked and laid out.

#include "program/call.h"

namespace gemelo {

void Batch::add(const CallPiece& piece, int64_t kept) {
  if (!kept) return;
  const int64_t gone = piece.tokens - kept;
  pieces.push_back({.cache = piece.cache.get(),
                    .first = tokens,
                    .tokens = kept,
                    .position = piece.position + gone,
                    .attend_until = piece.attend_until ? piece.attend_until + gone : nullptr});
  tokens += kept;
  if (kept > kFewTokens) return;
  num_exact++;
  exact_tokens += kept;
}

void Batch::place() const {
  for (const Piece& piece : pieces)
    for (const SlotPositions& slots : piece.cache->slots)
      for (int64_t p = piece.position; p < piece.position + piece.tokens; p++)
        slots.positions[p % slots.capacity] = p;
}

Batch Call::all() const {
  Batch batch;
  for (const CallPiece& piece : pieces) batch.add(piece, piece.tokens);
  return batch;
}

Batch Call::kept() const {
  Batch batch;
  for (const CallPiece& piece : pieces) batch.add(piece, piece.logits_to_keep);
  return batch;
}

const char* Call::fault() const {
  if (pieces.empty()) return "a call has no pieces";
  const KvCache& first = *pieces[0].cache;
  int before = 0;
  for (const CallPiece& piece : pieces) {
    const KvCache& cache = *piece.cache;
    if (piece.tokens < 1 || piece.position < 0) return "a piece has no tokens, or no position";
    if (piece.logits_to_keep < 0 || piece.logits_to_keep > piece.tokens)
      return "more scores are asked for than a piece has tokens";
    if (cache.format != first.format || cache.heads != first.heads || cache.d != first.d ||
        cache.layers.size() != first.layers.size())
      return "the caches of a call differ in format or shape";
    for (const SlotPositions& slots : cache.slots)
      if (slots.used < 1 || slots.used > slots.capacity) return "a cache has no slots in use";
    // Exact, then exact when tokens are let go, then bulk to the end.
    const int order = (piece.tokens > kFewTokens) + (piece.logits_to_keep > kFewTokens);
    if (order < before) return "exact pieces come first, then those of which few tokens are kept";
    before = order;
  }
  return nullptr;
}

}  // namespace gemelo
