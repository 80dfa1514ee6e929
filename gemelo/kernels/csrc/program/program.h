// A decoder's forward as a list of steps, written once when a model is loaded and run by all
// threads together (ggml's compute graph, without its planner).
//
// A token of a small model takes a few milliseconds and some hundred steps; going back to Python
// between them would cost as much again. The list is written in Python (gemelo/engine/programs),
// where it reads like the model's forward. Buffers hold a step's tokens, float (tokens, width):
// those of exact pieces first, then those of bulk pieces (call.h).

#pragma once

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "program/call.h"
#include "runtime/kernels.h"
#include "runtime/scratch.h"

namespace gemelo {

class Program {
 public:
  explicit Program(const Kernels& kernels);
  ~Program();
  Program(const Program&) = delete;

  int buffer(int64_t width);
  // Throws std::bad_alloc where there is no memory; the cache is then as after an interrupted step.
  void run(Call& call);
  // What is wrong with a call for this program, or null.
  const char* fault(const Call& call) const;

  struct State {
    Call& call;
    const Batch* batch;  // the tokens that still go on
    bool done = false;
    int64_t tokens() const { return batch->tokens; }
  };

  void embed(Matrix table, float scale, int out);
  void rotary_embedding(std::vector<float> inv_freq, LayerType layer_type);
  void norm(int x, Norm n, int out);
  void add_norm(int x, int y, Norm n, std::optional<Norm> next, int out);
  void product(int x, std::vector<Matrix> weights, std::vector<int> outs);
  void geglu(int x, Matrix gate_proj, Matrix up_proj, int gates, int ups);
  void sparse_geglu(int x, Matrix gate_proj, Matrix up_proj, float std_multiplier, int gates,
                    int ups);
  void norm_rope_heads(int x, int64_t d, Norm n, std::optional<LayerType> layer_type);
  void store_kv(int k, int v, int layer, LayerType layer_type);
  void attend(int q, int layer, LayerType layer_type, int64_t heads, int64_t window, float scale,
              int out);
  void keep_last_tokens(std::vector<int> buffers);
  void logits(int x, Matrix head, float cap);

  void altup_predict(std::vector<int> streams, std::vector<int> predicted, AltUp a);
  void altup_correct(std::vector<int> streams, std::vector<int> predicted, int activated, AltUp a,
                     int scaled);
  void laurel_residual(int active, int attended, Norm n, int x, int laurel, Norm m, Norm next,
                       int out, int normed);
  void gate_per_layer_input(int gates, int per_layer_inputs, int64_t layer);
  void add_to_others(std::vector<int> streams, int y, Norm n);
  void match_magnitude(int x, int target, float scale, bool add, int out);
  void per_layer_inputs(int projected, int64_t layers, Norm n, float projected_scale,
                        float table_scale);

 private:
  struct Buffer {
    int64_t width;
    std::unique_ptr<Scratch> room;
    float* data = nullptr;
  };
  // What all threads do between two barriers; after a product, the matrix that the next one reads.
  struct Step {
    std::function<void(Worker&, State&)> run;
    size_t next_matrix = 0;  // in matrices_; 0: not a product
  };
  struct Attention {
    int q, layer;
    LayerType layer_type;
    int64_t heads, window;
    float scale;
    int out;
  };
  // A product's matrix and the place of its result, (tokens, rows).
  struct To {
    Matrix w;
    float* out;
  };
  // Tokens [begin, end) of a step, of which those from `bulk` on are of bulk pieces.
  struct Span {
    int64_t begin, bulk, end;
  };
  // Tokens that a product takes one way, and how they are packed for it.
  struct Half {
    int64_t first = 0, tokens = 0;
    Packing packing = {};
    bool operator==(const Half&) const = default;
  };
  using Halves = std::array<Half, 2>;
  float* at(int buffer) { return buffers_[buffer].data; }
  float* at(int buffer, int64_t token) { return at(buffer) + token * width(buffer); }
  int64_t width(int buffer) const { return buffers_[buffer].width; }
  Activations activations(int buffer, int64_t token = 0) {
    return {at(buffer, token), width(buffer), false};
  }
  static Span whole(const State& s) { return {0, s.batch->exact_tokens, s.tokens()}; }
  std::vector<float*> all(const std::vector<int>& list);
  void reserve(const Batch& batch);
  void hint(Worker& worker, const Step& step) const;
  void append(std::function<void(Worker&, State&)> run) { steps_.push_back({std::move(run)}); }
  void append_product(const std::vector<Matrix>& weights,
                      std::function<void(Worker&, State&)> run) {
    matrices_.insert(matrices_.end(), weights.begin(), weights.end());
    steps_.push_back({std::move(run), matrices_.size()});
  }
  Halves halves(const Matrix& w, const Span& span) const;
  void pack(Worker& worker, int x, int64_t columns, const Halves& halves, Halves& packed);
  void multiply(Worker& worker, int x, const Span& span, const std::vector<To>& products);
  void close_gates(Worker& worker, int x, const State& s, const Matrix& up_proj,
                   float std_multiplier, int gates);
  Attend attention(const Batch& batch, const Attention& of) const;
  void finish_scores(Worker& worker, int64_t tokens, int64_t vocab_size, float cap, Call& call);
  void gelu_and_mul(Worker& worker, const Span& span, int64_t neurons, int gates, int ups);

  const Kernels& kernels;
  std::vector<Buffer> buffers_;
  std::vector<Step> steps_;
  std::vector<Matrix> matrices_;  // of all products, one after the other
  std::vector<Attention> attentions_;
  std::vector<Matrix> live_;  // of which tokens choose rows
  bool reads_per_layer_rows_ = false;
  Batch batches_[2];          // all of a call's tokens, and those that go on
  std::vector<float> inv_freq_[kLayerTypes];
  Scratch rotation_room_[kLayerTypes];  // cosines and sines of the call's tokens
  float* rotations_[kLayerTypes] = {};
  Scratch packed_[2], attend_;  // of exact tokens and of bulk ones
  std::vector<float> cutoffs_;  // of exact tokens' sparse gates
  friend void hold_programs();
  friend void release_programs();
  std::mutex one_call_;  // at a time
};

// Around a fork: no program runs meanwhile, so that the child finds no step half done.
void hold_programs();
void release_programs();

}  // namespace gemelo
