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

const char* Program::fault(const Call& call) const {
  if (reads_per_layer_rows_ && !call.per_layer_rows)
    return "the program reads per-layer embeddings, and the call has none";
  return call.fault();
}

void Program::run(Call& call) {
  std::lock_guard<std::mutex> lock(one_call_);  // the buffers serve one call at a time
  batches_[0] = call.all();
  batches_[1] = call.kept();
  const int64_t tokens = batches_[0].tokens;
  for (auto& buffer : buffers_) buffer.data = buffer.room->room<float>(buffer.width * tokens);
  for (int i = 0; i < kLayerTypes; i++)
    rotations_[i] = rotation_room_[i].room<float>(2 * inv_freq_[i].size() * tokens);
  for (const Batch& batch : batches_) reserve(batch);
  batches_[0].place();
  call.finite = true;
  State state{call, &batches_[0]};
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

// Workspace for steps of a batch; it only grows.
void Program::reserve(const Batch& batch) {
  size_t packed[2] = {}, attending = 0;
  const int64_t exact = batch.exact_tokens;
  for (const Matrix& w : matrices_) {
    const Halves both = halves(w, {0, exact, batch.tokens});
    for (int i = 0; i < 2; i++)
      packed[i] =
          std::max(packed[i], kernels.packed_bytes(both[i].packing, both[i].tokens, w.columns));
  }
  for (const Matrix& w : live_)
    packed[0] =
        std::max(packed[0], kernels.packed_bytes(kernels.live_packing(w), exact, w.columns));
  for (const Attention& of : attentions_)
    attending = std::max(attending, kernels.attend_bytes(attention(batch, of)));
  for (int i = 0; i < 2; i++) packed_[i].room<uint8_t>(packed[i]);
  attend_.room<uint8_t>(attending);
  cutoffs_.resize(std::max<size_t>(cutoffs_.size(), exact));
}

void Program::embed(Matrix table, float scale, int out) {
  append([=, this](Worker& worker, State& s) {
    int64_t begin, end;
    worker.share(s.tokens(), 1, begin, end);
    s.batch->by_pieces(begin, end, [&](size_t i, int64_t token, int64_t at_token, int64_t count) {
      float* x = at(out, at_token);
      const int64_t numbers = count * width(out);
      if (const float* embeds = s.call.pieces[i].inputs_embeds) {
        std::memcpy(x, embeds + token * width(out), sizeof(float) * numbers);
        return;
      }
      kernels.gather(table, s.call.ids + at_token, count, {x, width(out), false});
      for (int64_t j = 0; j < numbers; j++) x[j] *= scale;
    });
  });
}

void Program::rotary_embedding(std::vector<float> inv_freq, LayerType layer_type) {
  const int type = (int)layer_type;
  inv_freq_[type] = std::move(inv_freq);
  append([=, this](Worker& worker, State& s) {
    const auto& f = inv_freq_[type];
    const int64_t half = (int64_t)f.size();
    int64_t begin, end;
    worker.share(s.tokens(), 1, begin, end);
    s.batch->by_pieces(begin, end, [&](size_t i, int64_t token, int64_t at_token, int64_t count) {
      for (int64_t t = 0; t < count; t++) {
        float* row = rotations_[type] + 2 * half * (at_token + t);
        const auto position = (float)(s.batch->pieces[i].position + token + t);
        for (int64_t j = 0; j < half; j++) {
          row[j] = std::cos(position * f[j]);
          row[half + j] = std::sin(position * f[j]);
        }
      }
    });
  });
}

void Program::norm(int x, Norm n, int out) {
  append([=, this](Worker& worker, State& s) {
    kernels.norm(worker, at(x), n, s.tokens(), width(x), at(out));
  });
}

void Program::add_norm(int x, int y, Norm n, std::optional<Norm> next, int out) {
  append([=, this](Worker& worker, State& s) {
    kernels.add_norm(worker, at(x), at(y), n, next ? &*next : nullptr, s.tokens(), width(x),
                     next ? at(out) : nullptr);
  });
}

// Exact tokens take the one path through a matrix, bulk tokens the other; or all the same, where
// that gives exact tokens the same bits.
Program::Halves Program::halves(const Matrix& w, const Span& span) const {
  const auto half = [&](int64_t begin, int64_t end, Path path) {
    if (begin == end) return Half{};
    return Half{begin, end - begin, kernels.packing_for(w, path, end - begin)};
  };
  if (span.bulk < span.end && kernels.one_path(w))
    return {Half{}, half(span.begin, span.end, Path::kBulk)};
  return {half(span.begin, span.bulk, Path::kExact), half(span.bulk, span.end, Path::kBulk)};
}

// Both halves of x to their rooms, where `packed` says what lies there. Tokens are packed once for
// all matrices that take them alike.
void Program::pack(Worker& worker, int x, int64_t columns, const Halves& halves, Halves& packed) {
  const auto wants = [&](int i) {
    return halves[i].packing.form != Packing::kNone && halves[i] != packed[i];
  };
  const auto used = [&](int i) { return wants(i) && packed[i].packing.form != Packing::kNone; };
  if (!wants(0) && !wants(1)) return;
  if (used(0) || used(1)) worker.barrier();  // until the last matrix is done with it
  for (int i = 0; i < 2; i++) {
    if (!wants(i)) continue;
    const Half& half = packed[i] = halves[i];
    kernels.pack(worker, activations(x, half.first), half.tokens, columns, half.packing,
                 packed_[i].room<uint8_t>(0));
  }
  worker.barrier();
}

// The products of x with several matrices, each to its place.
void Program::multiply(Worker& worker, int x, const Span& span, const std::vector<To>& products) {
  Halves packed;
  for (const auto& [w, out] : products) {
    const Halves both = halves(w, span);
    pack(worker, x, w.columns, both, packed);
    for (int i = 0; i < 2; i++) {
      const auto& [first, tokens, packing] = both[i];
      const Activations y{out + first * w.rows, w.rows, false};
      if (!tokens) continue;
      if (packing.form == Packing::kNone)
        kernels.multiply_unpacked(worker, activations(x, first), tokens, w, y);
      else kernels.multiply(worker, packed_[i].room<uint8_t>(0), packing, tokens, w, y);
    }
  }
}

void Program::product(int x, std::vector<Matrix> weights, std::vector<int> outs) {
  append_product(weights, [=, this](Worker& worker, State& s) {
    std::vector<To> products;
    for (size_t i = 0; i < weights.size(); i++) products.push_back({weights[i], at(outs[i])});
    multiply(worker, x, whole(s), products);
  });
}

// gelu(gates) * ups, in place.
void Program::gelu_and_mul(Worker& worker, const Span& span, int64_t neurons, int gates, int ups) {
  int64_t begin, end;
  worker.share(neurons, 16, begin, end);
  kernels.gelu_and_mul(at(gates, span.begin), at(ups, span.begin), span.end - span.begin, neurons,
                       begin, end);
}

void Program::geglu(int x, Matrix gate_proj, Matrix up_proj, int gates, int ups) {
  append_product({gate_proj, up_proj}, [=, this](Worker& worker, State& s) {
    multiply(worker, x, whole(s), {{gate_proj, at(gates)}, {up_proj, at(ups)}});
    worker.barrier();
    gelu_and_mul(worker, whole(s), gate_proj.rows, gates, ups);
  });
}

// Exact tokens read the rows of up_proj whose gates are open, bulk tokens all of them.
void Program::sparse_geglu(int x, Matrix gate_proj, Matrix up_proj, float std_multiplier, int gates,
                           int ups) {
  live_.push_back(up_proj);
  append_product({gate_proj, up_proj}, [=, this](Worker& worker, State& s) {
    const int64_t exact = s.batch->exact_tokens;
    const Span bulk{exact, exact, s.tokens()};
    multiply(worker, x, whole(s), {{gate_proj, at(gates)}});
    worker.barrier();
    close_gates(worker, x, s, up_proj, std_multiplier, gates);
    worker.barrier();
    kernels.gate_live(worker, activations(x), packed_[0].room<uint8_t>(0), exact, up_proj,
                      cutoffs_.data(), at(gates));
    if (bulk.begin == bulk.end) return;
    multiply(worker, x, bulk, {{up_proj, at(ups)}});
    worker.barrier();
    gelu_and_mul(worker, bulk, up_proj.rows, gates, ups);
  });
}

// What the gates of every token have to pass: of exact tokens noted, and their x packed, of bulk
// tokens subtracted.
void Program::close_gates(Worker& worker, int x, const State& s, const Matrix& up_proj,
                          float std_multiplier, int gates) {
  const int64_t exact = s.batch->exact_tokens, neurons = up_proj.rows;
  if (exact)
    kernels.pack(worker, activations(x), exact, up_proj.columns, kernels.live_packing(up_proj),
                 packed_[0].room<uint8_t>(0));
  int64_t begin, end;
  worker.share(s.tokens(), 1, begin, end);
  for (int64_t t = begin; t < end; t++) {
    float* row = at(gates, t);
    const float cutoff = kernels.gaussian_cutoff(row, neurons, std_multiplier);
    if (t < exact) cutoffs_[t] = cutoff;
    else kernels.gaussian_topk(row, cutoff, 0, neurons);
  }
}

void Program::norm_rope_heads(int x, int64_t d, Norm n, std::optional<LayerType> layer_type) {
  append([=, this](Worker& worker, State& s) {
    const float* rotations = layer_type ? rotations_[(int)*layer_type] : nullptr;
    kernels.norm_rope_heads(worker, at(x), s.tokens(), width(x) / d, d, n, rotations);
  });
}

void Program::store_kv(int k, int v, int layer, LayerType layer_type) {
  append([=, this](Worker& worker, State& s) {
    kernels.store_kv(worker, at(k), at(v), s.batch->pieces.data(), s.batch->pieces.size(), layer,
                     layer_type);
  });
}

Attend Program::attention(const Batch& batch, const Attention& of) const {
  return {.q = buffers_[of.q].data,
          .pieces = batch.pieces.data(),
          .num_exact = batch.num_exact,
          .num_pieces = (int64_t)batch.pieces.size(),
          .layer = of.layer,
          .layer_type = of.layer_type,
          .heads = of.heads,
          .window = of.window,
          .scale = of.scale,
          .out = buffers_[of.out].data};
}

void Program::attend(int q, int layer, LayerType layer_type, int64_t heads, int64_t window,
                     float scale, int out) {
  const Attention of{q, layer, layer_type, heads, window, scale, out};
  attentions_.push_back(of);
  append([=, this](Worker& worker, State& s) {
    kernels.attend(worker, attention(*s.batch, of), attend_.room<uint8_t>(0));
  });
}

// Only the last tokens of each piece go on.
void Program::keep_last_tokens(std::vector<int> buffers) {
  append([=, this](Worker& worker, State& s) {
    const Batch &before = batches_[0], &kept = batches_[1];
    if (s.batch == &kept || kept.tokens == before.tokens) return;
    s.batch = &kept;
    s.done = !kept.tokens;
    const auto move = [&](float* x, int64_t width) {
      if (!width) return;
      int64_t end = 0, first = 0;
      for (const CallPiece& piece : s.call.pieces) {
        end += piece.tokens;
        const int64_t count = piece.logits_to_keep;
        std::memmove(x + first * width, x + (end - count) * width, sizeof(float) * count * width);
        first += count;
      }
    };
    // Buffers are dealt out in turn, rotations behind them.
    const auto count = (int)buffers.size();
    for (int i = worker.index; i < count + kLayerTypes && !s.done; i += worker.count)
      if (i < count) move(at(buffers[i]), width(buffers[i]));
      else move(rotations_[i - count], 2 * (int64_t)inv_freq_[i - count].size());
  });
}

void Program::logits(int x, Matrix head, float cap) {
  append_product({head}, [=, this](Worker& worker, State& s) {
    multiply(worker, x, whole(s), {{head, s.call.scores}});
    worker.barrier();
    finish_scores(worker, s.tokens(), head.rows, cap, s.call);
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
    kernels.altup_predict(worker, from.data(), to.data(), a, s.tokens(), width(streams[0]));
  });
}

void Program::altup_correct(std::vector<int> streams, std::vector<int> predicted, int activated,
                            AltUp a, int scaled) {
  append([=, this](Worker& worker, State& s) {
    const auto to = all(streams), from = all(predicted);
    kernels.altup_correct(worker, to.data(), from.data(), at(activated), a, s.tokens(),
                          width(activated), at(scaled));
  });
}

void Program::laurel_residual(int active, int attended, Norm n, int x, int laurel, Norm m,
                              Norm next, int out, int normed) {
  append([=, this](Worker& worker, State& s) {
    kernels.laurel_residual(worker, at(active), at(attended), n, at(x), at(laurel), m, next,
                            s.tokens(), width(out), at(out), at(normed));
  });
}

void Program::gate_per_layer_input(int gates, int per_layer_inputs, int64_t layer) {
  append([=, this](Worker& worker, State& s) {
    const int64_t w = width(gates);
    kernels.gate_per_layer_input(worker, at(gates), at(per_layer_inputs) + layer * w,
                                 width(per_layer_inputs), s.tokens(), w);
  });
}

void Program::add_to_others(std::vector<int> streams, int y, Norm n) {
  append([=, this](Worker& worker, State& s) {
    const auto to = all(streams);
    kernels.add_to_others(worker, to.data(), at(y), n, s.tokens(), width(y));
  });
}

void Program::match_magnitude(int x, int target, float scale, bool add, int out) {
  append([=, this](Worker& worker, State& s) {
    kernels.match_magnitude(worker, at(x), at(target), s.tokens(), width(x), scale, add, at(out));
  });
}

void Program::per_layer_inputs(int projected, int64_t layers, Norm n, float projected_scale,
                               float table_scale) {
  reads_per_layer_rows_ = true;
  append([=, this](Worker& worker, State& s) {
    static thread_local Scratch id_room, row_room;
    const int64_t p = width(projected) / layers;
    int64_t begin, end;
    worker.share(s.tokens() * layers, 1, begin, end);
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
