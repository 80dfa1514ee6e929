// Every instruction set of this machine against the generic one, without Python: for processors
// that are only there as an emulator, where .ci/cross runs it. tests/kernels/test_cpu.py asks far
// more.
//
// Prints one line for each instruction set and returns 1 if any differs.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "runtime/kernels.h"

using namespace gemelo;

namespace {

struct TestFormat {
  const char* name;
  Format number;
  int block, bytes;
  std::vector<int> halves;  // where a block has half-precision numbers
};

const TestFormat kAll[] = {
    {"f32", kF32, 1, 4, {}},           {"f16", kF16, 1, 2, {0}},
    {"bf16", kBF16, 1, 2, {}},         {"q4_0", kQ4_0, 32, 18, {0}},
    {"q5_0", kQ5_0, 32, 22, {0}},      {"q8_0", kQ8_0, 32, 34, {0}},
    {"q4_k", kQ4_K, 256, 144, {0, 2}}, {"q5_k", kQ5_K, 256, 176, {0, 2}},
    {"q6_k", kQ6_K, 256, 210, {208}},
};

std::mt19937 random_bits(1);

float uniform() { return (float)(int32_t)random_bits() / 2147483648.0f; }

std::vector<float> numbers(int64_t count, float size = 1) {
  std::vector<float> x(count);
  for (float& v : x) v = size * uniform();
  return x;
}

// Random blocks at an odd address, with scales between 2^-10 and 2^-5.
std::vector<uint8_t> blocks(const TestFormat& format, int64_t count) {
  std::vector<uint8_t> bytes(count * format.bytes + 65);
  for (uint8_t& b : bytes) b = (uint8_t)random_bits();
  for (int64_t i = 0; i < count; i++) {
    uint8_t* p = bytes.data() + 1 + i * format.bytes;
    const float weight = uniform();
    uint32_t bits;
    std::memcpy(&bits, &weight, 4);
    if (format.number == kF32) std::memcpy(p, &weight, 4);
    if (format.number == kBF16) std::memcpy(p, (uint8_t*)&bits + 2, 2);
    for (int at : format.halves) p[at + 1] = (uint8_t)(0x14 + random_bits() % 16);
  }
  return bytes;
}

struct Judge {
  const char* isa;
  int wrong = 0, asked = 0;

  void close(const char* what, const std::vector<float>& got, const std::vector<float>& want,
             double allowed) {
    double off = 0, size = 0;
    for (size_t i = 0; i < got.size(); i++) {
      off += std::pow((double)got[i] - want[i], 2);
      size += std::pow((double)want[i], 2);
    }
    asked++;
    if (std::sqrt(off) <= allowed * std::sqrt(size)) return;  // false for NaN
    wrong++;
    std::printf("%s: %s is off by %.2e\n", isa, what, std::sqrt(off / size));
  }
};

std::vector<float> product(const Kernels& k, const Matrix& w, std::vector<float>& x,
                           int64_t tokens) {
  std::vector<float> y(tokens * w.rows);
  k.product({{x.data(), w.columns, false}, tokens, w, {y.data(), w.rows, false}});
  return y;
}

// Another format of activations (bytes or bfloat16), and the same ones summed with other roundings:
// a single output may be all that is left of terms that cancel.
constexpr double kOther = 0.02, kSame = 5e-5;

// Products and single rows of one matrix, however it lies.
void compare(Judge& judge, const Kernels& fast, const Kernels& plain, const char* name,
             const Matrix& w) {
  std::vector<int64_t> ids(w.rows);
  for (int64_t r = 0; r < w.rows; r++) ids[r] = w.rows - 1 - r;
  std::vector<float> got(w.rows * w.columns), want(w.rows * w.columns);
  fast.gather(w, ids.data(), w.rows, {got.data(), w.columns, false});
  plain.gather(w, ids.data(), w.rows, {want.data(), w.columns, false});
  judge.close(name, got, want, 0);
  for (int64_t tokens : {1, 2, 3, 4, 7, 16, 17, 40}) {
    auto x = numbers(tokens * w.columns);
    const auto y = product(fast, w, x, tokens);
    const bool rounds = tokens > kFewTokens && w.format != kF32;
    judge.close(name, y, product(plain, w, x, tokens), rounds ? kOther : kSame);
    if (tokens > kFewTokens) continue;
    for (int64_t t = 0; t < tokens; t++) {
      std::vector<float> one(x.begin() + t * w.columns, x.begin() + (t + 1) * w.columns);
      judge.close("a token alone", product(fast, w, one, 1),
                  {y.begin() + t * w.rows, y.begin() + (t + 1) * w.rows}, 0);
    }
  }
}

void products(Judge& judge, const Kernels& fast, const Kernels& plain, const TestFormat& format) {
  for (int64_t rows : {1, 7, 33}) {
    const int64_t columns = format.block == 1 ? 45 : format.block * (format.block == 32 ? 35 : 9);
    const auto bytes = blocks(format, rows * columns / format.block);
    Matrix w{bytes.data() + 1, columns / format.block * format.bytes,
             format.number,    rows,
             columns,          nullptr,
             Layout::kRows};
    compare(judge, fast, plain, format.name, w);
    w.columns -= format.block == 32 ? 32 : 0;  // panels have whole units
    const auto stride = (int64_t)plain.panel_bytes(format.number, w.columns);
    if (!stride) continue;
    std::vector<uint8_t> got((rows + 63) / 64 * 4 * stride + 64), want(got);
    const auto lines = [](std::vector<uint8_t>& v) {
      return (uint8_t*)(((uintptr_t)v.data() + 63) / 64 * 64);
    };
    fast.interleave(w, 0, 0, lines(got));
    plain.interleave(w, 0, 0, lines(want));
    judge.close("interleaved", {lines(got), lines(got) + (rows + 15) / 16 * stride},
                {lines(want), lines(want) + (rows + 15) / 16 * stride}, 0);
    compare(judge, fast, plain, format.name,
            {lines(want), stride, format.number, rows, w.columns, nullptr, Layout::kPanels});
    const int64_t apart = (rows + 63) / 64 * 256;
    plain.interleave(w, 0, apart, lines(want));
    compare(judge, fast, plain, format.name,
            {lines(want), apart, format.number, rows, w.columns, nullptr, Layout::kStrips});
  }
}

// A step on the one and the other: `run` writes into the buffer that it is given a copy of.
using Step = std::function<void(const Kernels&, Worker&, std::vector<float>&)>;

void steps(Judge& judge, const Kernels& fast, const Kernels& plain) {
  constexpr int64_t kTokens = 5, kWidth = 192, kHeads = 3, kHead = 64;
  const auto x = numbers(kTokens * kWidth, 3), other = numbers(kTokens * kWidth, 3);
  const auto weight = numbers(kWidth);
  const Norm norm{weight.data(), 1, 1e-6f};
  const std::pair<const char*, Step> all[] = {
      {"norm",
       [&](const Kernels& k, Worker& w, std::vector<float>& y) {
         k.norm(w, x.data(), norm, kTokens, kWidth, y.data());
       }},
      {"add_norm",
       [&](const Kernels& k, Worker& w, std::vector<float>& y) {
         auto sum = x;
         k.add_norm(w, sum.data(), other.data(), norm, &norm, kTokens, kWidth, y.data());
       }},
      {"gate",
       [&](const Kernels& k, Worker&, std::vector<float>& y) {
         k.gelu_and_mul(y.data(), other.data(), kTokens, kWidth, 0, kWidth);
       }},
      {"softcap", [&](const Kernels& k, Worker&,
                      std::vector<float>& y) { k.softcap(y.data(), 2.5f, 0, kTokens * kWidth); }},
      {"heads",
       [&](const Kernels& k, Worker& w, std::vector<float>& y) {
         k.norm_rope_heads(w, y.data(), kTokens, kHeads, kHead, norm, other.data());
       }},
      {"gaussian_topk",
       [&](const Kernels& k, Worker&, std::vector<float>& y) {
         k.gaussian_topk(y.data(), k.gaussian_cutoff(y.data(), kWidth, 0.5f), 0, kWidth);
       }},
  };
  for (const auto& [name, step] : all) {
    auto got = x, want = x;
    parallel([&, &step = step](Worker& w) { step(fast, w, got); });
    parallel([&, &step = step](Worker& w) { step(plain, w, want); });
    judge.close(name, got, want, 2e-6);
  }
}

// A cache of each format, filled, its bits compared, and attended to by pieces of one token, of a
// few and of many, together and each alone.
void caches(Judge& judge, const Kernels& fast, const Kernels& plain) {
  constexpr int64_t kHeads = 7, kHead = 64, kSlots = 90, kNumbers = kSlots * kHead;
  constexpr int64_t kTokens[] = {1, 5, 16, 21}, kFew = 22, kAll = 43, kWide = kHeads * kHead;
  const auto q = numbers(kAll * kWide, 3), k = numbers(kNumbers), v = numbers(kNumbers);
  std::vector<int64_t> positions(kSlots), until(kAll);
  for (int64_t s = 0; s < kSlots; s++) positions[s] = s - 2;
  for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kInt8}) {
    // Keys, values and their scales, one behind the other.
    const auto run = [&](const Kernels& kernels, bool together, std::vector<uint8_t>& held) {
      held.resize(kNumbers * 8 + kSlots * 4);
      auto* scales = (uint16_t*)(held.data() + kNumbers * 8);
      const KvLayer layer{{held.data(), scales}, {held.data() + kNumbers * 4, scales + kSlots}};
      const SlotPositions slots{positions.data(), kSlots, kSlots};
      const KvCache cache{{layer}, {slots, slots}, format, 1, kHead};
      const Piece filled{&cache, 0, kSlots, 0, nullptr};
      std::vector<Piece> pieces;
      int64_t first = 0;
      for (int64_t tokens : kTokens) {
        const int64_t position = 17 * first % 60;
        for (int64_t t = 0; t < tokens; t++) until[first + t] = position + t + t % 3 * 7;
        pieces.push_back({&cache, first, tokens, position, until.data() + first});
        first += tokens;
      }
      std::vector<float> y(kAll * kWide);
      const auto attend = [&](const Piece* some, int64_t exact, int64_t count, int64_t skipped) {
        const Attend a{q.data() + skipped, some,   exact, count,  0,
                       LayerType::kFull,   kHeads, 50,    0.125f, y.data() + skipped};
        std::vector<uint8_t> room(kernels.attend_bytes(a));
        parallel([&](Worker& worker) { kernels.attend(worker, a, room.data()); });
      };
      parallel([&](Worker& worker) {
        kernels.store_kv(worker, k.data(), v.data(), &filled, 1, 0, LayerType::kFull);
      });
      if (together) attend(pieces.data(), 3, 4, 0);
      for (Piece& piece : pieces) {
        const int64_t skipped = std::exchange(piece.first, 0) * kWide;
        if (!together) attend(&piece, piece.tokens <= kFewTokens, 1, skipped);
      }
      return y;
    };
    std::vector<uint8_t> got, want;
    const auto found = run(fast, true, got), expected = run(plain, true, want);
    const auto part = [](const std::vector<float>& y, int64_t begin, int64_t end) {
      return std::vector<float>(y.begin() + begin * kWide, y.begin() + end * kWide);
    };
    judge.close("attend", part(found, 0, kFew), part(expected, 0, kFew), 2e-6);
    judge.close("attend of many", part(found, kFew, kAll), part(expected, kFew, kAll),
                format == CacheFormat::kF32 ? 2e-6 : kOther);
    judge.close("attend alone", run(fast, false, got), found, 0);
    judge.close("keep", {got.begin(), got.end()}, {want.begin(), want.end()}, 0);
  }
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
  int wrong = 0;
  for (const char* const* name = runnable(); *name; name++) {
    Judge judge{*name};
    set_threads(2);
    for (const TestFormat& format : kAll)
      products(judge, *kernels_named(*name), *kernels_named("generic"), format);
    caches(judge, *kernels_named(*name), *kernels_named("generic"));
    set_threads(1);  // whole steps, one after the other
    steps(judge, *kernels_named(*name), *kernels_named("generic"));
    std::printf("%s: %d of %d comparisons agree\n", *name, judge.asked - judge.wrong, judge.asked);
    wrong += judge.wrong;
  }
  return wrong != 0;
}
