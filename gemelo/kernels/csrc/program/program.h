// A decoder as a list of steps, written once when a model is loaded and run by all threads
// together.
//
// A token of a small model takes a few milliseconds and some hundred steps; going back to Python
// between them would cost as much again. The list is written in Python (gemelo/engine/graphs.py),
// where it reads like the model's forward. Buffers hold a step's tokens, float (tokens, width).

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/kernels.h"
#include "runtime/scratch.h"

namespace gemelo {

constexpr int kKinds = 2;  // of layers: sliding, full

// The positions in the slots of one kind of layer, -1 where there is none: (rows, capacity).
struct Table {
  int64_t* positions;
  int64_t row_stride, capacity, used;
};

// A call: rows * tokens_a_row tokens, where they lie, and what they may look at.
struct Call {
  const int64_t *ids, *positions;
  const int64_t* reach;  // the last position that each token sees
  const float* embeds;   // (tokens, width) that stand for those of the ids, or null
  int64_t rows, tokens_a_row;
  int64_t keep;  // tokens of a row that go on after the last keys; -1: all
  Table tables[kKinds];
  std::vector<Cache> caches;       // of the layers that own keys
  const Matrix* told;              // Gemma 3n: what is looked up, (tokens * layers, P)
  float* out;                      // scores
  std::atomic<bool> finite{true};  // whether all of these are
};

class Program {
 public:
  explicit Program(const Kernels& kernels);
  ~Program();
  Program(const Program&) = delete;

  int buffer(int64_t width);
  void run(Call& call);

  struct State {
    Call& call;
    int64_t tokens;  // that still go on
    int64_t tokens_a_row;
    const int64_t *positions, *reach;
    bool done = false;
  };
  using Step = std::function<void(Worker&, State&)>;

  void embed(Matrix table, float scale, int out);
  void angles(std::vector<float> frequencies, int kind);
  void norm(int x, Norm n, int out);
  void add_norm(int x, int y, Norm n, Norm next, int out);
  void product(int x, std::vector<Matrix> weights, std::vector<int> outs);
  void gated(int x, Matrix gate_proj, Matrix up_proj, int gates, int ups);
  void sparse_gated(int x, Matrix gate_proj, Matrix up_proj, float cutoff, int gates, int ups);
  void heads(int x, int64_t d, Norm n, int kind);
  void keep(int k, int v, int layer, int kind);
  void attend(int q, int layer, int kind, int64_t heads, int64_t window, float scale, int out);
  void cut(std::vector<int> buffers);
  void logits(int x, Matrix head, float cap);

  void predict(std::vector<int> streams, std::vector<int> predicted, AltUp a);
  void correct(std::vector<int> streams, std::vector<int> predicted, int activated, AltUp a,
               int scaled);
  void meet(int active, int attended, Norm n, int x, int detour, Norm m, Norm next, int out,
            int normed);
  void inform(int gates, int informed, int64_t place);
  void add_to_others(std::vector<int> streams, int y, Norm n);
  void rescale(int x, int like, float share, bool add, int out);
  void combine(int projected, int64_t layers, Norm n, float projected_scale, float table_scale);

 private:
  struct Buffer {
    int64_t width;
    std::unique_ptr<Scratch> room;
    float* data = nullptr;
  };
  float* at(int buffer) { return buffers_[buffer].data; }
  int64_t width(int buffer) const { return buffers_[buffer].width; }
  Activations activations(int buffer) { return {at(buffer), width(buffer), false}; }
  std::vector<float*> all(const std::vector<int>& list);
  void place(const Call& call);
  void reserve(const Call& call, int64_t tokens, int64_t tokens_a_row);
  void step(Step step) {
    steps_.push_back(std::move(step));
    products_.push_back(0);
  }
  void product_step(const std::vector<Matrix>& weights, Step step) {
    this->step(std::move(step));
    multiplied_.insert(multiplied_.end(), weights.begin(), weights.end());
    products_.back() = multiplied_.size();
  }
  // A product's matrix and the place of its result, (tokens, rows).
  struct To {
    Matrix w;
    float* out;
  };
  void multiply(Worker& worker, int x, int64_t tokens, const std::vector<To>& products);
  void gate_live(Worker& worker, int x, const Matrix& up_proj, float cutoff, float* gates);
  void gate(Worker& worker, int64_t tokens, int64_t neurons, int gates, int ups);

  const Kernels& kernels;
  std::vector<Buffer> buffers_;
  std::vector<Step> steps_;
  std::vector<int64_t> slots_[kKinds];  // of the step's tokens, -1 for padding
  std::vector<float> angles_[kKinds];   // frequencies
  Scratch turns_[kKinds];               // cosines and sines of the step's tokens
  float* turn_[kKinds] = {};
  Scratch packed_, attend_;
  std::vector<Matrix> multiplied_;  // by every product, one after the other
  std::vector<size_t> products_;    // of the steps, how many had been after it; 0: no product
  struct Attending {
    int layer, kind;
    int64_t heads;
  };
  std::vector<Attending> attends_;
  friend void hold_programs();
  friend void release_programs();
  std::mutex turn_taken_;
};

// Around a fork: no program runs meanwhile, so that the child finds no step half done.
void hold_programs();
void release_programs();

}  // namespace gemelo
