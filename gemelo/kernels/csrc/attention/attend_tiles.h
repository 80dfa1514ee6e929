// Attention of bulk tokens in bfloat16 tiles, as FlashAttention blocks it: keys and values become
// tiles once for all heads' tokens, blocks of 32 tokens look at blocks of 32 slots, and blocks that
// nobody may look at are skipped, which is all that a window or the future costs. A piece's blocks
// begin at its first token, so they give the same bits whatever else is in the step.
//
// Scores of up to kSlots slots are held at once; longer caches go on with the running maximum and
// sum (online softmax, arXiv 1805.02867).

#pragma once

#include "attention/attend.h"
#include "gemm/bf16_tiles.h"

namespace GEMELO_ISA {

constexpr int64_t kSlots = 1024;  // scores held at once, for 32 tokens
constexpr int64_t kBlock = 32;    // tokens, and slots, that go together

// Tiles of one head's keys or values: kBlock slots are two by d / 32 tiles, or one by d / 16.
static inline int64_t head_tiles(int64_t slots, int64_t d) {
  return (slots + kBlock - 1) / kBlock * (d / 16);
}

static inline int64_t blocks_of(int64_t count) { return (count + kBlock - 1) / kBlock; }

// Tiles of the keys and values of a piece's cache.
static inline int64_t piece_tiles(const Attend& a, const Piece& piece) {
  return 2 * piece.cache->heads * head_tiles(slots_of(a, piece).used, piece.cache->d);
}
static size_t tile_attend_bytes(const Attend& a) {
  return sizeof(Tile) * count_all(exact_end(a), a.pieces + a.num_pieces,
                                  [&](const Piece& piece) { return piece_tiles(a, piece); });
}

// The positions that a token sees, or all of a piece's.
struct Sight {
  int64_t first, last;
};

static inline Sight sight_of(const Attend& a, const Piece& piece, int64_t token) {
  const int64_t query = piece.position + token;
  return {a.window ? std::max<int64_t>(0, query - a.window + 1) : 0, piece.until(token)};
}

static inline Sight sight_of(const Attend& a, const Piece& piece) {
  Sight all = sight_of(a, piece, 0);
  for (int64_t t = 1; t < piece.tokens; t++) all.last = std::max(all.last, piece.until(t));
  return all;
}

// Whether some position of a block of slots is seen.
static inline bool is_seen(const gemelo::SlotPositions& slots, int64_t block, const Sight& sight) {
  const int64_t end = std::min((block + 1) * kBlock, slots.used);
  bool seen = false;
  for (int64_t s = block * kBlock; s < end; s++)
    seen |= slots.positions[s] >= sight.first && slots.positions[s] <= sight.last;
  return seen;
}

// Sixteen of the numbers of a slot, times its scale; 0 where there is no such slot.
template <class Number>
static inline F numbers_of(const Slots<Number>& x, int64_t slot, int64_t slots, int64_t column) {
  return slot < slots ? load_numbers(x.at(slot) + column) * set(x.scale(slot)) : set(0);
}

// Keys of 16 slots as d / 32 tiles of 16 pairs of columns x 16 slots.
template <class Number>
static inline void pack_keys(const Slots<Number>& k, int64_t slot, int64_t slots, int64_t d,
                             Tile* out) {
  for (int64_t column = 0; column < d; column += 32, out++) {
    __m512i lines[16];
    for (int i = 0; i < 16; i++)
      lines[i] = (__m512i)_mm512_cvtne2ps_pbh(numbers_of(k, slot + i, slots, column + 16),
                                              numbers_of(k, slot + i, slots, column));
    transpose(lines);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(*out + 32 * i, lines[i]);
  }
}

// Values of 32 slots as d / 16 tiles of 16 pairs of slots x 16 columns.
template <class Number>
static inline void pack_values(const Slots<Number>& v, int64_t slot, int64_t slots, int64_t d,
                               Tile* out) {
  for (int64_t column = 0; column < d; column += 16, out++) {
    for (int64_t p = 0; p < kBlock; p += 2) {
      const F even = numbers_of(v, slot + p, slots, column);
      const F odd = numbers_of(v, slot + p + 1, slots, column);
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
      const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
      _mm512_storeu_si512(*out + 16 * p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// This worker's share of the keys and values that a piece sees: keys first, then values, head by
// head. `turn` counts blocks of all pieces, which are dealt out in turn.
static inline void pack_cache(Worker& worker, const Attend& a, const Piece& piece, int64_t& turn,
                              Tile* packed) {
  const KvCache& cache = *piece.cache;
  const gemelo::KvLayer& kept = cache.layers[a.layer];
  const gemelo::SlotPositions& slots = slots_of(a, piece);
  const int64_t d = cache.d, tiles = head_tiles(slots.used, d);
  const Sight sight = sight_of(a, piece);
  with_numbers(cache, [&](auto number) {
    for (int64_t block = 0; block < blocks_of(slots.used); block++) {
      if (!is_seen(slots, block, sight)) continue;
      for (int64_t head = 0; head < cache.heads; head++) {
        if (turn++ % worker.count != worker.index) continue;
        const Slots<decltype(number)> k(cache, kept.k, head), v(cache, kept.v, head);
        const int64_t slot = block * kBlock;
        Tile* keys = packed + head * tiles + block * (d / 16);
        pack_keys(k, slot, slots.used, d, keys);
        pack_keys(k, slot + 16, slots.used, d, keys + d / 32);
        pack_values(v, slot, slots.used, d, keys + cache.heads * tiles);
      }
    }
  });
}

static void pack_caches(Worker& worker, const Attend& a, Tile* packed) {
  int64_t turn = 0;
  for (const Piece* piece = exact_end(a); piece < a.pieces + a.num_pieces; piece++) {
    pack_cache(worker, a, *piece, turn, packed);
    packed += piece_tiles(a, *piece);
  }
}

// What a block of tokens keeps while it goes through the slots: the positions it may look at, the
// largest score so far and the sum of weights.
struct TokenState {
  int32_t low[kBlock], high[kBlock];
  float most[kBlock], total[kBlock];
};

// Scale the scores of a token's slots, and mask those that lie outside its positions.
static inline void mask_row(float* scores, const int32_t* positions, int32_t low, int32_t high,
                            float scale) {
  for (int i = 0; i < kBlock; i += 16) {
    const __m512i p = _mm512_loadu_si512(positions + i);
    const __mmask16 seen = _mm512_cmpge_epi32_mask(p, _mm512_set1_epi32(low)) &
                           _mm512_cmple_epi32_mask(p, _mm512_set1_epi32(high));
    store(scores + i, _mm512_mask_mul_ps(set(-INFINITY), seen, load(scores + i), set(scale)));
  }
}

// Turn a token's scores over `count` slots into weights, bfloat16 in tile rows; the sum so far and
// what was summed before shrink when a larger score turns up. Returns by how much.
static inline float softmax_row(float* scores, int64_t count, float* most, float* total,
                                int64_t line, Tile* weights, int64_t span) {
  F top = set(*most), odd = set(0);
  for (int64_t i = 0; i < count; i += 16) {
    const F s = load(scores + i);
    top = larger(top, s);
    odd = fma(larger(set(-1e30f), s), set(0), odd);  // a NaN stays one
  }
  const float now = largest(top), shrink = now == *most ? 1.0f : std::exp(*most - now);
  F sums = set(0);
  for (int64_t i = 0; i < count; i += 32) {
    // What is masked is -infinity: e^-87 of it would still count when all else is as small.
    const auto weight = [&](int64_t at) GEMELO_INLINE {
      const F s = load(scores + at);
      const __mmask16 seen = _mm512_cmp_ps_mask(s, set(-INFINITY), _CMP_GT_OQ);
      return _mm512_maskz_mov_ps(seen, exponential(s - set(now)));
    };
    const F a = weight(i), b = weight(i + 16);
    sums = sums + (a + b);
    Tile* tile = weights + (line / 16) * span + i / 32;
    _mm512_storeu_si512(*tile + 32 * (line % 16), (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
  *total = *total * shrink + sum(sums) + sum(odd);
  *most = now;
  return shrink;
}

// One head's block of 32 tokens of a piece, from `first` on.
static inline void attend_block(const Attend& a, const Piece& piece, const Tile* keys,
                                const Tile* values, int64_t head, int64_t first, float* room) {
  const int64_t d = piece.cache->d, steps = d / 32, wide = kSlots;
  const int64_t there = std::min(piece.tokens - first, kBlock);
  const gemelo::SlotPositions& table = slots_of(a, piece);
  float* scores = room;                 // 32 x kSlots
  float* out = scores + kBlock * wide;  // 32 x d
  Tile* q = (Tile*)(out + kBlock * d);  // 2 x d / 32
  Tile* weights = q + 2 * steps;        // 2 x kSlots / 32
  const int64_t all_blocks = blocks_of(table.used);
  auto* positions = (int32_t*)(weights + 2 * wide / 32);
  auto* slots = positions + all_blocks * kBlock;  // blocks of slots that somebody sees

  for (int64_t t = 0; t < kBlock; t++) {
    const float* x = a.q + ((piece.first + first + t) * a.heads + head) * d;
    for (int64_t i = 0; i < steps; i++) {
      uint16_t* line = q[(t / 16) * steps + i] + 32 * (t % 16);
      store_bf16(line, t < there ? load(x + 32 * i) : set(0));
      store_bf16(line + 16, t < there ? load(x + 32 * i + 16) : set(0));
    }
  }
  TokenState state;
  Sight all = sight_of(a, piece, first);
  for (int t = 0; t < kBlock; t++) {
    // What fills up the block sees everything, and is not read.
    const Sight one = t < there ? sight_of(a, piece, first + t) : Sight{INT32_MIN, INT32_MAX};
    state.low[t] = (int32_t)one.first;
    state.high[t] = (int32_t)one.last;
    state.most[t] = -1e30f;
    state.total[t] = 0;
    if (t < there) all.last = std::max(all.last, one.last);
  }
  int64_t count = 0;
  for (int64_t block = 0; block < all_blocks; block++) {
    if (!is_seen(table, block, all)) continue;
    slots[count++] = (int32_t)block;
    for (int64_t s = block * kBlock; s < (block + 1) * kBlock; s++)
      positions[s] = s < table.used ? (int32_t)table.positions[s] : -1;
  }
  for (int64_t begin = 0; begin < count; begin += wide / kBlock) {
    const int64_t blocks = count - begin < wide / kBlock ? count - begin : wide / kBlock;
    for (int64_t i = 0; i < blocks; i++) {
      float* c = scores + i * kBlock;
      tile_block(q, steps, keys + slots[begin + i] * (d / 16), 1, steps, steps, c, wide, true);
      for (int64_t t = 0; t < kBlock; t++)
        mask_row(c + t * wide, positions + slots[begin + i] * kBlock, state.low[t], state.high[t],
                 a.scale);
    }
    for (int64_t t = 0; t < kBlock; t++) {
      const float shrink = softmax_row(scores + t * wide, blocks * kBlock, &state.most[t],
                                       &state.total[t], t, weights, wide / 32);
      if (begin && shrink != 1.0f)
        for (int64_t i = 0; i < d; i += 16)
          store(out + t * d + i, load(out + t * d + i) * set(shrink));
    }
    for (int64_t column = 0; column < d; column += 32) {
      for (int64_t i = 0; i < blocks; i++) {
        const Tile* v = values + slots[begin + i] * (d / 16) + column / 16;
        tile_block(weights + i, wide / 32, v, 1, 1, 1, out + column, d, begin + i == 0);
      }
    }
  }
  for (int64_t t = 0; t < there; t++) {
    float* y = a.out + ((piece.first + first + t) * a.heads + head) * d;
    const F inverse = set(1.0f / state.total[t]);
    for (int64_t i = 0; i < d; i += 16) store(y + i, load(out + t * d + i) * inverse);
  }
}

// All pieces' blocks in one list, over the tiles of pack_caches.
static void attend_tiles(Worker& worker, const Attend& a, const Tile* packed) {
  static thread_local gemelo::Scratch own;
  const Piece *bulk = exact_end(a), *end = a.pieces + a.num_pieces;
  const int64_t d = bulk->cache->d, group = a.heads / bulk->cache->heads;
  int64_t most = 0;  // slots of a piece
  for (const Piece* piece = bulk; piece < end; piece++)
    most = std::max(most, slots_of(a, *piece).used);
  float* scratch = own.room<float>(kBlock * kSlots + kBlock * d + 512 * (d / 32) +
                                   512 * (kSlots / 32) + 2 * most + 4 * kBlock);
  begin_tiles();
  int64_t turn = 0;
  for (const Piece* piece = bulk; piece < end; packed += piece_tiles(a, *piece++)) {
    const int64_t tiles = head_tiles(slots_of(a, *piece).used, d);
    // Later blocks see more: dealt out in turn, everybody gets early and late ones.
    for (int64_t i = 0; i < blocks_of(piece->tokens) * a.heads; i++) {
      if (turn++ % worker.count != worker.index) continue;
      const int64_t block = i / a.heads, head = i % a.heads;
      const Tile* keys = packed + head / group * tiles;
      attend_block(a, *piece, keys, keys + piece->cache->heads * tiles, head, block * kBlock,
                   scratch);
    }
  }
  end_tiles();
}

}  // namespace GEMELO_ISA
