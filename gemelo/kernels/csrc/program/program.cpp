#include "program/program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

namespace gemelo {

constexpr int64_t kSoon = 1 << 17;  // bytes of a next matrix that a waiting thread fetches at most

namespace {

std::set<Program*>& programs = *new std::set<Program*>;  // all there are; never destroyed
std::mutex changes;                                      // of these

}  // namespace

Program::Program(const Kernels& kernels) : kernels(kernels) {
  std::lock_guard<std::mutex> lock(changes);
  programs.insert(this);
}

Program::~Program() {
  std::lock_guard<std::mutex> lock(changes);
  programs.erase(this);
}

void hold_programs() {
  changes.lock();
  for (Program* program : programs) program->turn_taken_.lock();
}

void release_programs() {
  for (Program* program : programs) program->turn_taken_.unlock();
  changes.unlock();
}

int Program::buffer(int64_t width) {
  buffers_.push_back({width, std::make_unique<Scratch>()});
  return (int)buffers_.size() - 1;
}

std::vector<float*> Program::all(const std::vector<int>& list) {
  std::vector<float*> out;
  for (int buffer : list) out.push_back(at(buffer));
  return out;
}

void Program::run(Call& call) {
  std::lock_guard<std::mutex> turn(turn_taken_);  // the buffers serve one call at a time
  const int64_t tokens = call.rows * call.tokens_a_row;
  for (auto& buffer : buffers_) buffer.data = buffer.room->room<float>(buffer.width * tokens);
  for (int kind = 0; kind < kKinds; kind++)
    turn_[kind] = turns_[kind].room<float>(2 * angles_[kind].size() * tokens);
  reserve(call, tokens, call.tokens_a_row);
  if (call.keep > 0 && call.keep < tokens) reserve(call, call.keep, call.keep);  // after the cut
  place(call);
  State state{call, tokens, call.tokens_a_row, call.positions, call.reach};
  // The steps change the state; each thread has its own, and they stay alike.
  parallel([&](Worker& worker) {
    State own = state;
    for (size_t i = 0; i < steps_.size(); i++) {
      steps_[i](worker, own);
      if (own.done) break;
      if (products_[i] && products_[i] < multiplied_.size()) {
        const Matrix& w = multiplied_[products_[i]];
        const int64_t first = worker.first(w.rows, kShare);
        if (w.layout == kRows) worker.expect(w.row(first), kSoon);
        if (w.layout == kPanels) worker.expect(w.blocks + first / kShare * w.stride, kSoon);
      }
      worker.barrier();
    }
  });
}

// Position p goes to slot p mod capacity, padding nowhere.
void Program::place(const Call& call) {
  for (int kind = 0; kind < kKinds; kind++) {
    const Table& table = call.tables[kind];
    slots_[kind].clear();
    for (int64_t t = 0; t < call.rows * call.tokens_a_row; t++) {
      const int64_t position = call.positions[t];
      const int64_t slot = position < 0 ? -1 : position % table.capacity;
      if (slot >= 0) table.positions[t / call.tokens_a_row * table.row_stride + slot] = position;
      slots_[kind].push_back(slot);
    }
  }
}

// Workspace for steps of so many tokens; it only grows.
void Program::reserve(const Call& call, int64_t tokens, int64_t tokens_a_row) {
  size_t packed = 0, attending = 0;
  for (const Matrix& w : multiplied_)
    if (const int packing = kernels.packing(w, tokens))
      packed = std::max(packed, kernels.packed_bytes(packing, tokens, w.columns));
  for (const auto& [layer, kind, heads] : attends_) {
    Attend a{};
    a.cache = call.caches[layer];
    a.slots = call.tables[kind].used;
    a.tokens = tokens;
    a.tokens_a_row = tokens_a_row;
    a.heads = heads;
    attending = std::max(attending, kernels.attend_bytes(a));
  }
  packed_.room<uint8_t>(packed);
  attend_.room<uint8_t>(attending);
}

void Program::embed(Matrix table, float scale, int out) {
  step([=](Worker& worker, State& s) {
    int64_t begin, end;
    worker.share(s.tokens, 1, begin, end);
    if (begin == end) return;
    float* x = at(out) + begin * width(out);
    if (s.call.embeds) {
      std::memcpy(x, s.call.embeds + begin * width(out),
                  sizeof(float) * (end - begin) * width(out));
      return;
    }
    kernels.gather(table, s.call.ids + begin, end - begin, {x, width(out), false});
    for (int64_t i = 0; i < (end - begin) * width(out); i++) x[i] *= scale;
  });
}

void Program::angles(std::vector<float> frequencies, int kind) {
  angles_[kind] = std::move(frequencies);
  step([=](Worker& worker, State& s) {
    const auto& f = angles_[kind];
    const int64_t half = (int64_t)f.size();
    int64_t begin, end;
    worker.share(s.tokens, 1, begin, end);
    for (int64_t t = begin; t < end; t++) {
      float* row = turn_[kind] + 2 * half * t;
      const float position = (float)s.positions[t];
      for (int64_t i = 0; i < half; i++) {
        row[i] = std::cos(position * f[i]);
        row[half + i] = std::sin(position * f[i]);
      }
    }
  });
}

void Program::norm(int x, Norm n, int out) {
  step([=](Worker& worker, State& s) {
    kernels.norm(worker, at(x), n, s.tokens, width(x), at(out));
  });
}

void Program::add_norm(int x, int y, Norm n, Norm next, int out) {
  step([=](Worker& worker, State& s) {
    const bool more = next.weight != nullptr;
    kernels.add_norm(worker, at(x), at(y), n, more ? &next : nullptr, s.tokens, width(x),
                     more ? at(out) : nullptr);
  });
}

// The products of x with several matrices, each to its place. Many tokens are packed once for all
// matrices that take them alike.
void Program::multiply(Worker& worker, int x, int64_t tokens, const std::vector<To>& products) {
  int packed = 0;
  for (const To& product : products) {
    const Matrix& w = product.w;
    const Activations y{product.out, w.rows, false};
    const int packing = kernels.packing(w, tokens);
    if (!packing) {
      kernels.few(worker, activations(x), tokens, w, y);
      continue;
    }
    void* room = packed_.room<uint8_t>(0);
    if (packing != packed) {
      if (packed) worker.barrier();  // until the last matrix is done with it
      kernels.pack(worker, activations(x), tokens, w.columns, packing, room);
      worker.barrier();
      packed = packing;
    }
    kernels.multiply(worker, room, tokens, w, y);
  }
}

void Program::product(int x, std::vector<Matrix> weights, std::vector<int> outs) {
  product_step(weights, [=](Worker& worker, State& s) {
    std::vector<To> products;
    for (size_t i = 0; i < weights.size(); i++) products.push_back({weights[i], at(outs[i])});
    multiply(worker, x, s.tokens, products);
  });
}

// gelu(gates) * ups, in place.
void Program::gate(Worker& worker, int64_t tokens, int64_t neurons, int gates, int ups) {
  int64_t begin, end;
  worker.share(neurons, 16, begin, end);
  kernels.gate(at(gates), at(ups), tokens, neurons, begin, end);
}

void Program::gated(int x, Matrix gate_proj, Matrix up_proj, int gates, int ups) {
  product_step({gate_proj, up_proj}, [=](Worker& worker, State& s) {
    multiply(worker, x, s.tokens, {{gate_proj, at(gates)}, {up_proj, at(ups)}});
    worker.barrier();
    gate(worker, s.tokens, gate_proj.rows, gates, ups);
  });
}

void Program::sparse_gated(int x, Matrix gate_proj, Matrix up_proj, float cutoff, int gates,
                           int ups) {
  product_step({gate_proj, up_proj}, [=](Worker& worker, State& s) {
    const int64_t neurons = gate_proj.rows;
    multiply(worker, x, s.tokens, {{gate_proj, at(gates)}});
    worker.barrier();
    if (s.tokens == 1) return gate_live(worker, x, up_proj, cutoff, at(gates));
    int64_t begin, end;
    worker.share(s.tokens, 1, begin, end);
    for (int64_t t = begin; t < end; t++) {
      float* row = at(gates) + t * neurons;
      kernels.strongest(row, kernels.threshold(row, neurons, cutoff), 0, neurons);
    }
    worker.barrier();
    multiply(worker, x, s.tokens, {{up_proj, at(ups)}});
    worker.barrier();
    gate(worker, s.tokens, neurons, gates, ups);
  });
}

// One token: a thread goes on with its own neurons, and reads the rows of those that are alive.
void Program::gate_live(Worker& worker, int x, const Matrix& up_proj, float cutoff, float* gates) {
  static thread_local std::vector<int64_t> live;
  static thread_local Scratch room;
  const float least = kernels.threshold(gates, up_proj.rows, cutoff);  // everybody for himself
  worker.barrier();                                                    // all have read all
  int64_t begin, end, count = 0;
  worker.share(up_proj.rows, 16, begin, end);
  kernels.strongest(gates, least, begin, end);
  live.resize(end - begin + 1);
  for (int64_t i = begin; i < end; i++) {
    live[count] = i;
    count += gates[i] != 0;  // NaN is alive
  }
  if (!count) return;
  const int64_t width = (count + 15) / 16 * 16;
  float* strong = room.room<float>(2 * width);
  float* up = strong + width;
  std::fill_n(strong, 2 * width, 0.0f);
  for (int64_t i = 0; i < count; i++) strong[i] = gates[live[i]];
  Matrix mine = up_proj;
  mine.index = live.data();
  mine.rows = count;
  Worker alone{worker.pool, 0, 1};
  kernels.few(alone, activations(x), 1, mine, {up, count, false});
  kernels.gate(strong, up, 1, width, 0, width);
  for (int64_t i = 0; i < count; i++) gates[live[i]] = strong[i];
}

void Program::heads(int x, int64_t d, Norm n, int kind) {
  step([=](Worker& worker, State& s) {
    kernels.heads(worker, at(x), s.tokens, width(x) / d, d, n, kind < 0 ? nullptr : turn_[kind]);
  });
}

void Program::keep(int k, int v, int layer, int kind) {
  step([=](Worker& worker, State& s) {
    kernels.keep(worker, at(k), at(v), s.call.caches[layer], slots_[kind].data(), s.tokens,
                 s.tokens_a_row);
  });
}

void Program::attend(int q, int layer, int kind, int64_t heads, int64_t window, float scale,
                     int out) {
  attends_.push_back({layer, kind, heads});
  step([=](Worker& worker, State& s) {
    const Table& table = s.call.tables[kind];
    kernels.attend(worker,
                   {at(q), s.call.caches[layer], table.positions, table.row_stride, table.used,
                    s.positions, s.reach, s.tokens, s.tokens_a_row, heads, window, scale, at(out)},
                   attend_.room<uint8_t>(0));
  });
}

// Only the last tokens of a (single) row go on.
void Program::cut(std::vector<int> buffers) {
  step([=](Worker& worker, State& s) {
    const int64_t keep = s.call.keep;
    if (keep < 0 || keep >= s.tokens_a_row) return;
    const int64_t gone = s.tokens - keep;
    if (keep == 0) {
      s.done = true;
      return;
    }
    if (worker.index == 0) {
      for (int buffer : buffers) {
        const int64_t w = width(buffer);
        std::memmove(at(buffer), at(buffer) + gone * w, sizeof(float) * keep * w);
      }
      for (int kind = 0; kind < kKinds; kind++) {
        const int64_t w = 2 * (int64_t)angles_[kind].size();
        if (w) std::memmove(turn_[kind], turn_[kind] + gone * w, sizeof(float) * keep * w);
      }
    }
    s.positions += gone;
    s.reach += gone;
    s.tokens = s.tokens_a_row = keep;
  });
}

void Program::logits(int x, Matrix head, float cap) {
  product_step({head}, [=](Worker& worker, State& s) {
    multiply(worker, x, s.tokens, {{head, s.call.out}});
    worker.barrier();
    int64_t begin, end;
    worker.share(s.tokens * head.rows, 16, begin, end);
    if (cap > 0) kernels.softcap(s.call.out, cap, begin, end);
    if (!kernels.finite(s.call.out, begin, end)) s.call.finite = false;
  });
}

// ---- Gemma 3n -----------------------------------------------------------------------------------

void Program::predict(std::vector<int> streams, std::vector<int> predicted, AltUp a) {
  step([=](Worker& worker, State& s) {
    const auto from = all(streams), to = all(predicted);
    kernels.predict(worker, from.data(), to.data(), a, s.tokens, width(streams[0]));
  });
}

void Program::correct(std::vector<int> streams, std::vector<int> predicted, int activated, AltUp a,
                      int scaled) {
  step([=](Worker& worker, State& s) {
    const auto to = all(streams), from = all(predicted);
    kernels.correct(worker, to.data(), from.data(), at(activated), a, s.tokens, width(activated),
                    at(scaled));
  });
}

void Program::meet(int active, int attended, Norm n, int x, int detour, Norm m, Norm next, int out,
                   int normed) {
  step([=](Worker& worker, State& s) {
    kernels.meet(worker, at(active), at(attended), n, at(x), at(detour), m, next, s.tokens,
                 width(out), at(out), at(normed));
  });
}

void Program::inform(int gates, int informed, int64_t place) {
  step([=](Worker& worker, State& s) {
    const int64_t w = width(gates);
    kernels.inform(worker, at(gates), at(informed) + place * w, width(informed), s.tokens, w);
  });
}

void Program::add_to_others(std::vector<int> streams, int y, Norm n) {
  step([=](Worker& worker, State& s) {
    const auto to = all(streams);
    kernels.add_to_others(worker, to.data(), at(y), n, s.tokens, width(y));
  });
}

void Program::rescale(int x, int like, float share, bool add, int out) {
  step([=](Worker& worker, State& s) {
    kernels.rescale(worker, at(x), at(like), s.tokens, width(x), share, add, at(out));
  });
}

void Program::combine(int projected, int64_t layers, Norm n, float projected_scale,
                      float table_scale) {
  step([=](Worker& worker, State& s) {
    static thread_local Scratch id_room, row_room;
    const int64_t p = width(projected) / layers;
    int64_t begin, end;
    worker.share(s.tokens * layers, 1, begin, end);
    auto* ids = id_room.room<int64_t>(layers);
    auto* rows = row_room.room<float>(layers * p);
    for (int64_t i = begin; i < end; i += layers) {
      const int64_t count = std::min(layers, end - i);
      std::iota(ids, ids + count, i);
      kernels.gather(*s.call.told, ids, count, {rows, p, false});
      kernels.combine(at(projected) + i * p, rows, n, projected_scale, table_scale, count, p);
    }
  });
}

}  // namespace gemelo
