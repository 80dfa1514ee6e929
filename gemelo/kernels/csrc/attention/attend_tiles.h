// Attention of many tokens in bfloat16 tiles, as FlashAttention blocks it: keys and values become
// tiles once for all heads' tokens, blocks of 32 tokens look at blocks of 32 slots, and blocks that
// nobody may look at are skipped, which is all that a window or the future costs.
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

static size_t tile_attend_bytes(const Attend& a) {
  const int64_t rows = a.tokens / a.tokens_a_row;
  return sizeof(Tile) * 2 * rows * a.cache.heads * head_tiles(a.slots, a.cache.d);
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

// This worker's share of all keys and values: keys first, then values, head by head.
static inline void pack_cache(Worker& worker, const Attend& a, Tile* packed) {
  const int64_t d = a.cache.d, heads = a.cache.heads, tiles = head_tiles(a.slots, d);
  const int64_t rows = a.tokens / a.tokens_a_row, blocks = (a.slots + kBlock - 1) / kBlock;
  int64_t begin, end;
  worker.share(rows * heads * blocks, 1, begin, end);
  with_numbers(a.cache, [&](auto number) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t head = i / blocks, slot = i % blocks * kBlock;  // head of a row
      const Slots<decltype(number)> k(a.cache, a.cache.k, head / heads, head % heads);
      const Slots<decltype(number)> v(a.cache, a.cache.v, head / heads, head % heads);
      Tile* keys = packed + head * tiles + slot / kBlock * (d / 16);
      pack_keys(k, slot, a.slots, d, keys);
      pack_keys(k, slot + 16, a.slots, d, keys + d / 32);
      pack_values(v, slot, a.slots, d, keys + rows * heads * tiles);
    }
  });
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

// One head's block of 32 tokens.
static inline void attend_block(const Attend& a, const Tile* keys, const Tile* values, int64_t row,
                                int64_t head, int64_t first, float* room) {
  const int64_t d = a.cache.d, steps = d / 32, wide = kSlots;
  const int64_t there = a.tokens_a_row - first < kBlock ? a.tokens_a_row - first : kBlock;
  float* scores = room;                 // 32 x kSlots
  float* out = scores + kBlock * wide;  // 32 x d
  Tile* q = (Tile*)(out + kBlock * d);  // 2 x d / 32
  Tile* weights = q + 2 * steps;        // 2 x kSlots / 32
  const int64_t all_blocks = (a.slots + kBlock - 1) / kBlock;
  auto* positions = (int32_t*)(weights + 2 * wide / 32);
  auto* slots = positions + all_blocks * kBlock;  // blocks of slots that somebody sees
  const int64_t* queries = a.query_positions + row * a.tokens_a_row + first;
  const int64_t* until = a.attend_until + row * a.tokens_a_row + first;

  for (int64_t t = 0; t < kBlock; t++) {
    const float* x = a.q + ((row * a.tokens_a_row + first + t) * a.heads + head) * d;
    for (int64_t i = 0; i < steps; i++) {
      uint16_t* line = q[(t / 16) * steps + i] + 32 * (t % 16);
      store_bf16(line, t < there ? load(x + 32 * i) : set(0));
      store_bf16(line + 16, t < there ? load(x + 32 * i + 16) : set(0));
    }
  }
  TokenState state;
  int32_t least = INT32_MAX, last = -1;
  for (int t = 0; t < kBlock; t++) {
    const int64_t query = t < there ? queries[t] : -1;  // padding sees everything, and is not read
    const int64_t first_seen = a.window && query >= a.window ? query - a.window + 1 : 0;
    state.low[t] = query < 0 ? INT32_MIN : (int32_t)first_seen;
    state.high[t] = query < 0 ? INT32_MAX : (int32_t)until[t];
    state.most[t] = -1e30f;
    state.total[t] = 0;
    if (query >= 0 && state.low[t] < least) least = state.low[t];
    if (query >= 0 && state.high[t] > last) last = state.high[t];
  }
  const int64_t* table = a.key_positions + row * a.position_stride;
  int64_t count = 0;
  for (int64_t block = 0; block < all_blocks; block++) {
    bool wanted = false;
    for (int64_t s = block * kBlock; s < (block + 1) * kBlock; s++) {
      positions[s] = s < a.slots ? (int32_t)table[s] : -1;
      wanted |= positions[s] >= least && positions[s] <= last;
    }
    if (wanted) slots[count++] = (int32_t)block;
  }
  if (!count) slots[count++] = 0;  // a block of padding alone
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
    float* y = a.out + ((row * a.tokens_a_row + first + t) * a.heads + head) * d;
    const F inverse = set(1.0f / state.total[t]);
    for (int64_t i = 0; i < d; i += 16) store(y + i, load(out + t * d + i) * inverse);
  }
}

static void attend_tiles(Worker& worker, const Attend& a, void* room) {
  static thread_local gemelo::Scratch own;
  auto* packed = (Tile*)room;
  pack_cache(worker, a, packed);
  worker.barrier();
  begin_tiles();
  const int64_t d = a.cache.d, tiles = head_tiles(a.slots, d), rows = a.tokens / a.tokens_a_row;
  const int64_t blocks = (a.tokens_a_row + kBlock - 1) / kBlock, group = a.heads / a.cache.heads;
  float* scratch = own.room<float>(kBlock * kSlots + kBlock * d + 512 * (d / 32) +
                                   512 * (kSlots / 32) + 2 * a.slots + 4 * kBlock);
  // Later blocks see more: dealt out in turn, everybody gets early and late ones.
  for (int64_t i = worker.index; i < rows * a.heads * blocks; i += worker.count) {
    const int64_t block = i / (rows * a.heads), head = i % a.heads, row = i / a.heads % rows;
    const Tile* keys = packed + (row * a.cache.heads + head / group) * tiles;
    attend_block(a, keys, keys + rows * a.cache.heads * tiles, row, head, block * kBlock, scratch);
  }
  end_tiles();
}

}  // namespace GEMELO_ISA
