// A decoder's forward as a list of steps, written once when a model is loaded and run by all
// threads together (ggml's compute graph, without its planner).
//
// A token of a small model takes a few milliseconds and some hundred steps; going back to Python
// between them would cost as much again. The list is written in Python (gemelo/engine/programs),
// where it reads like the model's forward. Buffers hold a step's tokens, float (tokens, width).

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "runtime/kernels.h"
#include "runtime/scratch.h"

namespace gemelo {

enum class LayerType { kSliding, kFull };  // of attention
constexpr int kLayerTypes = 2;

// What lies in the slots of the layers of one type: positions (rows, capacity), -1 where there is
// none.
struct SlotPositions {
  int64_t* positions;
  int64_t row_stride, capacity, used;
};

// A call: rows * tokens_a_row tokens, where they lie, and what they may look at.
struct Call {
  const int64_t *ids, *positions;
  const int64_t* attend_until;  // the last position that each token sees
  const float* inputs_embeds;   // (tokens, width) that stand for those of the ids, or null
  int64_t rows, tokens_a_row;
  std::optional<int64_t> logits_to_keep;  // tokens of a row that go on after the last keys; or all
  SlotPositions slots[kLayerTypes] = {};
  std::vector<KvCache> caches = {};      // of the layers that own keys
  std::optional<Matrix> per_layer_rows;  // Gemma 3n: its per-layer embeddings, (tokens * layers, P)
  float* scores;
  float* maxima;  // of every kMaximaBlock scores of a token, the last of fewer; or null
  std::atomic<bool> finite{true};  // whether all scores are
};

class Program {
 public:
  explicit Program(const Kernels& kernels);
  ~Program();
  Program(const Program&) = delete;

  int buffer(int64_t width);
  // Throws std::bad_alloc where there is no memory; the cache is then as after an interrupted step.
  void run(Call& call);

  struct State {
    Call& call;
    int64_t tokens;  // that still go on
    int64_t tokens_a_row;
    const int64_t *positions, *attend_until;
    bool done = false;
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
    int layer;
    LayerType layer_type;
    int64_t heads;
  };
  // A product's matrix and the place of its result, (tokens, rows).
  struct To {
    Matrix w;
    float* out;
  };
  float* at(int buffer) { return buffers_[buffer].data; }
  int64_t width(int buffer) const { return buffers_[buffer].width; }
  Activations activations(int buffer) { return {at(buffer), width(buffer), false}; }
  std::vector<float*> all(const std::vector<int>& list);
  void map_slots(const Call& call);
  void reserve(const Call& call, int64_t tokens, int64_t tokens_a_row);
  void hint(Worker& worker, const Step& step) const;
  void append(std::function<void(Worker&, State&)> run) { steps_.push_back({std::move(run)}); }
  void append_product(const std::vector<Matrix>& weights,
                      std::function<void(Worker&, State&)> run) {
    matrices_.insert(matrices_.end(), weights.begin(), weights.end());
    steps_.push_back({std::move(run), matrices_.size()});
  }
  void multiply(Worker& worker, int x, int64_t tokens, const std::vector<To>& products);
  void gate_live(Worker& worker, int x, const Matrix& up_proj, float std_multiplier, float* gates);
  void finish_scores(Worker& worker, int64_t tokens, int64_t vocab_size, float cap, Call& call);
  void gelu_and_mul(Worker& worker, int64_t tokens, int64_t neurons, int gates, int ups);

  const Kernels& kernels;
  std::vector<Buffer> buffers_;
  std::vector<Step> steps_;
  std::vector<Matrix> matrices_;  // of all products, one after the other
  std::vector<Attention> attentions_;
  std::vector<int64_t> slot_mapping_[kLayerTypes];  // of the call's tokens, -1 for padding
  std::vector<float> inv_freq_[kLayerTypes];
  Scratch rotation_room_[kLayerTypes];  // cosines and sines of the call's tokens
  float* rotations_[kLayerTypes] = {};
  Scratch packed_, attend_;
  friend void hold_programs();
  friend void release_programs();
  std::mutex one_call_;  // at a time
};

// Around a fork: no program runs meanwhile, so that the child finds no step half done.
void hold_programs();
void release_programs();

}  // namespace gemelo
