// The steps of a program, and how one call runs them.

#include "program/program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

namespace gemelo {

constexpr int64_t kHintBytes =
    1 << 17;  // bytes of a next matrix that a waiting thread fetches at most

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
  for (Program* program : programs) program->one_call_.lock();
}

void release_programs() {
  for (Program* program : programs) program->one_call_.unlock();
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
  std::lock_guard<std::mutex> lock(one_call_);  // the buffers serve one call at a time
  const int64_t tokens = call.rows * call.tokens_a_row;
  for (auto& buffer : buffers_) buffer.data = buffer.room->room<float>(buffer.width * tokens);
  for (int i = 0; i < kLayerTypes; i++)
    rotations_[i] = rotation_room_[i].room<float>(2 * inv_freq_[i].size() * tokens);
  reserve(call, tokens, call.tokens_a_row);
  const int64_t kept = call.logits_to_keep.value_or(tokens);
  if (kept > 0 && kept < tokens) reserve(call, kept, kept);  // for the steps after keep_last_tokens
  map_slots(call);
  call.finite = true;
  State state{call, tokens, call.tokens_a_row, call.positions, call.attend_until};
  // The steps change the state; each thread has its own, and they stay alike.
  parallel([&](Worker& worker) {
    State own = state;
    for (const Step& step : steps_) {
      step.run(worker, own);
      if (own.done) break;
      hint(worker, step);
      worker.barrier();
    }
  });
}

// Where this thread begins in the matrix of the next product.
void Program::hint(Worker& worker, const Step& step) const {
  if (!step.next_matrix || step.next_matrix == matrices_.size()) return;
  const Matrix& w = matrices_[step.next_matrix];
  const int64_t first = worker.first(w.rows, kRowGrain);
  if (w.layout == Layout::kRows) worker.prefetch_hint(w.row(first), kHintBytes);
  if (w.layout == Layout::kPanels)
    worker.prefetch_hint(w.blocks + first / kRowGrain * w.stride, kHintBytes);
}

// Position p goes to slot p mod capacity, padding nowhere.
void Program::map_slots(const Call& call) {
  for (int i = 0; i < kLayerTypes; i++) {
    const SlotPositions& slots = call.slots[i];
    slot_mapping_[i].clear();
    for (int64_t t = 0; t < call.rows * call.tokens_a_row; t++) {
      const int64_t position = call.positions[t];
      const int64_t slot = position < 0 ? -1 : position % slots.capacity;
      if (slot >= 0) slots.positions[t / call.tokens_a_row * slots.row_stride + slot] = position;
      slot_mapping_[i].push_back(slot);
    }
  }
}

// Workspace for steps of so many tokens; it only grows.
void Program::reserve(const Call& call, int64_t tokens, int64_t tokens_a_row) {
  size_t packed = 0, attending = 0;
  for (const Matrix& w : matrices_)
    packed =
        std::max(packed, kernels.packed_bytes(kernels.packing_for(w, tokens), tokens, w.columns));
  for (const auto& [layer, layer_type, heads] : attentions_) {
    Attend a{};
    a.cache = call.caches[layer];
    a.slots = call.slots[(int)layer_type].used;
    a.tokens = tokens;
    a.tokens_a_row = tokens_a_row;
    a.heads = heads;
    attending = std::max(attending, kernels.attend_bytes(a));
  }
  packed_.room<uint8_t>(packed);
  attend_.room<uint8_t>(attending);
}

void Program::embed(Matrix table, float scale, int out) {
  append([=, this](Worker& worker, State& s) {
    int64_t begin, end;
    worker.share(s.tokens, 1, begin, end);
    if (begin == end) return;
    float* x = at(out) + begin * width(out);
    if (s.call.inputs_embeds) {
      std::memcpy(x, s.call.inputs_embeds + begin * width(out),
                  sizeof(float) * (end - begin) * width(out));
      return;
    }
    kernels.gather(table, s.call.ids + begin, end - begin, {x, width(out), false});
    for (int64_t i = 0; i < (end - begin) * width(out); i++) x[i] *= scale;
  });
}

void Program::rotary_embedding(std::vector<float> inv_freq, LayerType layer_type) {
  const int type = (int)layer_type;
  inv_freq_[type] = std::move(inv_freq);
  append([=, this](Worker& worker, State& s) {
    const auto& f = inv_freq_[type];
    const int64_t half = (int64_t)f.size();
    int64_t begin, end;
    worker.share(s.tokens, 1, begin, end);
    for (int64_t t = begin; t < end; t++) {
      float* row = rotations_[type] + 2 * half * t;
      const float position = (float)s.positions[t];
      for (int64_t i = 0; i < half; i++) {
        row[i] = std::cos(position * f[i]);
        row[half + i] = std::sin(position * f[i]);
      }
    }
  });
}

void Program::norm(int x, Norm n, int out) {
  append([=, this](Worker& worker, State& s) {
    kernels.norm(worker, at(x), n, s.tokens, width(x), at(out));
  });
}

void Program::add_norm(int x, int y, Norm n, std::optional<Norm> next, int out) {
  append([=, this](Worker& worker, State& s) {
    kernels.add_norm(worker, at(x), at(y), n, next ? &*next : nullptr, s.tokens, width(x),
                     next ? at(out) : nullptr);
  });
}

// The products of x with several matrices, each to its place. Many tokens are packed once for all
// matrices that take them alike.
void Program::multiply(Worker& worker, int x, int64_t tokens, const std::vector<To>& products) {
  Packing packed = Packing::kNone;
  for (const To& product : products) {
    const Matrix& w = product.w;
    const Activations y{product.out, w.rows, false};
    const Packing packing = kernels.packing_for(w, tokens);
    if (packing == Packing::kNone) {
      kernels.multiply_unpacked(worker, activations(x), tokens, w, y);
      continue;
    }
    void* room = packed_.room<uint8_t>(0);
    if (packing != packed) {
      if (packed != Packing::kNone) worker.barrier();  // until the last matrix is done with it
      kernels.pack(worker, activations(x), tokens, w.columns, packing, room);
      worker.barrier();
      packed = packing;
    }
    kernels.multiply(worker, room, tokens, w, y);
  }
}

void Program::product(int x, std::vector<Matrix> weights, std::vector<int> outs) {
  append_product(weights, [=, this](Worker& worker, State& s) {
    std::vector<To> products;
    for (size_t i = 0; i < weights.size(); i++) products.push_back({weights[i], at(outs[i])});
    multiply(worker, x, s.tokens, products);
  });
}

// gelu(gates) * ups, in place.
void Program::gelu_and_mul(Worker& worker, int64_t tokens, int64_t neurons, int gates, int ups) {
  int64_t begin, end;
  worker.share(neurons, 16, begin, end);
  kernels.gelu_and_mul(at(gates), at(ups), tokens, neurons, begin, end);
}

void Program::geglu(int x, Matrix gate_proj, Matrix up_proj, int gates, int ups) {
  append_product({gate_proj, up_proj}, [=, this](Worker& worker, State& s) {
    multiply(worker, x, s.tokens, {{gate_proj, at(gates)}, {up_proj, at(ups)}});
    worker.barrier();
    gelu_and_mul(worker, s.tokens, gate_proj.rows, gates, ups);
  });
}

void Program::sparse_geglu(int x, Matrix gate_proj, Matrix up_proj, float std_multiplier, int gates,
                           int ups) {
  append_product({gate_proj, up_proj}, [=, this](Worker& worker, State& s) {
    const int64_t neurons = gate_proj.rows;
    multiply(worker, x, s.tokens, {{gate_proj, at(gates)}});
    worker.barrier();
    if (s.tokens == 1) return gate_live(worker, x, up_proj, std_multiplier, at(gates));
    int64_t begin, end;
    worker.share(s.tokens, 1, begin, end);
    for (int64_t t = begin; t < end; t++) {
      float* row = at(gates) + t * neurons;
      kernels.gaussian_topk(row, kernels.gaussian_cutoff(row, neurons, std_multiplier), 0, neurons);
    }
    worker.barrier();
    multiply(worker, x, s.tokens, {{up_proj, at(ups)}});
    worker.barrier();
    gelu_and_mul(worker, s.tokens, neurons, gates, ups);
  });
}

// One token: a thread goes on with its own neurons, and reads the rows of those that are alive.
void Program::gate_live(Worker& worker, int x, const Matrix& up_proj, float std_multiplier,
                        float* gates) {
  static thread_local std::vector<int64_t> live;
  static thread_local Scratch room;
  const float cutoff =
      kernels.gaussian_cutoff(gates, up_proj.rows, std_multiplier);  // everybody for himself
  worker.barrier();                                                  // all have read all
  int64_t begin, end, count = 0;
  worker.share(up_proj.rows, 16, begin, end);
  kernels.gaussian_topk(gates, cutoff, begin, end);
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
  kernels.multiply_unpacked(alone, activations(x), 1, mine, {up, count, false});
  kernels.gelu_and_mul(strong, up, 1, width, 0, width);
  for (int64_t i = 0; i < count; i++) gates[live[i]] = strong[i];
}

void Program::norm_rope_heads(int x, int64_t d, Norm n, std::optional<LayerType> layer_type) {
  append([=, this](Worker& worker, State& s) {
    const float* rotations = layer_type ? rotations_[(int)*layer_type] : nullptr;
    kernels.norm_rope_heads(worker, at(x), s.tokens, width(x) / d, d, n, rotations);
  });
}

void Program::store_kv(int k, int v, int layer, LayerType layer_type) {
  append([=, this](Worker& worker, State& s) {
    kernels.store_kv(worker, at(k), at(v), s.call.caches[layer],
                     slot_mapping_[(int)layer_type].data(), s.tokens, s.tokens_a_row);
  });
}

void Program::attend(int q, int layer, LayerType layer_type, int64_t heads, int64_t window,
                     float scale, int out) {
  attentions_.push_back({layer, layer_type, heads});
  append([=, this](Worker& worker, State& s) {
    const SlotPositions& slots = s.call.slots[(int)layer_type];
    kernels.attend(
        worker,
        {at(q), s.call.caches[layer], slots.positions, slots.row_stride, slots.used, s.positions,
         s.attend_until, s.tokens, s.tokens_a_row, heads, window, scale, at(out)},
        attend_.room<uint8_t>(0));
  });
}

// Only the last tokens of a (single) row go on.
void Program::keep_last_tokens(std::vector<int> buffers) {
  append([=, this](Worker& worker, State& s) {
    const int64_t keep = s.call.logits_to_keep.value_or(s.tokens_a_row);
    if (keep >= s.tokens_a_row) return;
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
      for (int i = 0; i < kLayerTypes; i++) {
        const int64_t w = 2 * (int64_t)inv_freq_[i].size();
        if (w) std::memmove(rotations_[i], rotations_[i] + gone * w, sizeof(float) * keep * w);
      }
    }
    s.positions += gone;
    s.attend_until += gone;
    s.tokens = s.tokens_a_row = keep;
  });
}

void Program::logits(int x, Matrix head, float cap) {
  append_product({head}, [=, this](Worker& worker, State& s) {
    multiply(worker, x, s.tokens, {{head, s.call.scores}});
    worker.barrier();
    finish_scores(worker, s.tokens, head.rows, cap, s.call);
  });
}

// Soft-capped, a piece of a row at a time, then looked at while they are near: are they finite, and
// where are they large?
void Program::finish_scores(Worker& worker, int64_t tokens, int64_t vocab_size, float cap,
                            Call& call) {
  constexpr int64_t kPiece = 64;  // blocks
  const int64_t blocks = (vocab_size + kMaximaBlock - 1) / kMaximaBlock;
  int64_t begin, end;
  worker.share(tokens * blocks, 1, begin, end);
  while (begin < end) {
    const int64_t row = begin / blocks, first = begin % blocks;
    const int64_t count = std::min({end - begin, blocks - first, kPiece});
    float* scores = call.scores + row * vocab_size;
    const int64_t from = first * kMaximaBlock;
    const int64_t until = std::min(from + count * kMaximaBlock, vocab_size);
    if (cap > 0) kernels.softcap(scores, cap, from, until);
    const bool finite =
        call.maxima ? kernels.block_maxima(scores, from, until, call.maxima + begin)
                    : kernels.all_finite(scores, from, until);
    if (!finite) call.finite = false;
    begin += count;
  }
}

// ---- Gemma 3n -----------------------------------------------------------------------------------

void Program::altup_predict(std::vector<int> streams, std::vector<int> predicted, AltUp a) {
  append([=, this](Worker& worker, State& s) {
    const auto from = all(streams), to = all(predicted);
    kernels.altup_predict(worker, from.data(), to.data(), a, s.tokens, width(streams[0]));
  });
}

void Program::altup_correct(std::vector<int> streams, std::vector<int> predicted, int activated,
                            AltUp a, int scaled) {
  append([=, this](Worker& worker, State& s) {
    const auto to = all(streams), from = all(predicted);
    kernels.altup_correct(worker, to.data(), from.data(), at(activated), a, s.tokens,
                          width(activated), at(scaled));
  });
}

void Program::laurel_residual(int active, int attended, Norm n, int x, int laurel, Norm m,
                              Norm next, int out, int normed) {
  append([=, this](Worker& worker, State& s) {
    kernels.laurel_residual(worker, at(active), at(attended), n, at(x), at(laurel), m, next,
                            s.tokens, width(out), at(out), at(normed));
  });
}

void Program::gate_per_layer_input(int gates, int per_layer_inputs, int64_t layer) {
  append([=, this](Worker& worker, State& s) {
    const int64_t w = width(gates);
    kernels.gate_per_layer_input(worker, at(gates), at(per_layer_inputs) + layer * w,
                                 width(per_layer_inputs), s.tokens, w);
  });
}

void Program::add_to_others(std::vector<int> streams, int y, Norm n) {
  append([=, this](Worker& worker, State& s) {
    const auto to = all(streams);
    kernels.add_to_others(worker, to.data(), at(y), n, s.tokens, width(y));
  });
}

void Program::match_magnitude(int x, int target, float scale, bool add, int out) {
  append([=, this](Worker& worker, State& s) {
    kernels.match_magnitude(worker, at(x), at(target), s.tokens, width(x), scale, add, at(out));
  });
}

void Program::per_layer_inputs(int projected, int64_t layers, Norm n, float projected_scale,
                               float table_scale) {
  append([=, this](Worker& worker, State& s) {
    static thread_local Scratch id_room, row_room;
    const int64_t p = width(projected) / layers;
    int64_t begin, end;
    worker.share(s.tokens * layers, 1, begin, end);
    auto* ids = id_room.room<int64_t>(layers);
    auto* rows = row_room.room<float>(layers * p);
    for (int64_t i = begin; i < end; i += layers) {
      const int64_t count = std::min(layers, end - i);
      std::iota(ids, ids + count, i);
      kernels.gather(*s.call.per_layer_rows, ids, count, {rows, p, false});
      kernels.per_layer_inputs(at(projected) + i * p, rows, n, projected_scale, table_scale, count,
                               p);
    }
  });
}

}  // namespace gemelo
