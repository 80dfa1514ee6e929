// nanobind bindings: addresses and sizes in, next to nothing out.
//
// Everything is checked by the callers: gemelo/kernels/cpu.py and repacked.py, engine/programs,
// weights/mapped.py. What is said here goes to gemelo/kernels/_native.pyi (dev/stub.py).

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#ifndef _WIN32
#include <pthread.h>
#endif

#include <algorithm>

#include "program/program.h"
#include "runtime/kernels.h"
#include "runtime/mapped_files.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace gemelo;

namespace {

const Kernels* chosen = nullptr;

void use(const std::string& name) {
  const Kernels* kernels = kernels_named(name.c_str());
  if (!kernels) throw nb::value_error("not an instruction set of this machine");
  chosen = kernels;
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const char* const* name = runnable(); *name; name++) all.emplace_back(*name);
  return all;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Activations activations(uintptr_t data, int64_t stride, bool bf16) {
  return {at<void>(data), stride, bf16};
}

// Every thread looks where it wrote when these were scores; or one at a block, if maxima say which.
int64_t argmax(const float* x, int64_t count, const float* maxima) {
  if (maxima) {
    const int64_t blocks = (count + kMaximaBlock - 1) / kMaximaBlock;
    const int64_t first = chosen->argmax(maxima, 0, blocks) * kMaximaBlock;
    return chosen->argmax(x, first, std::min(first + kMaximaBlock, count));
  }
  std::vector<int64_t> found(pool().threads());
  parallel([&](Worker& worker) {
    int64_t begin, end;
    worker.share(count, kRowGrain, begin, end);
    found[worker.index] = chosen->argmax(x, begin, end);
  });
  int64_t best = 0;
  for (int64_t i : found)
    if (i < count && x[i] > x[best]) best = i;
  return best;
}

bool pack(uintptr_t x, int64_t rows, int64_t columns, Format format, uintptr_t out) {
  const bool writes = format == kQ8_0 || format == kQ4_0 || format == kF32 || format == kF16 ||
                      format == kBF16;
  if (!writes) throw nb::value_error("only Q8_0, Q4_0 and plain floats are written");
  nb::gil_scoped_release nogil;
  return chosen->pack_weights(at<const float>(x), rows, columns, format, at<uint8_t>(out));
}

#ifndef _WIN32  // which has no forks

// A fork waits for the steps that run, and goes on while none does: what the child has of them is
// whole, and nothing is locked in it by a thread that it has not.
void before_fork() {
  hold_programs();
  hold_pools();
  hold_maps();
}

void after_fork() {
  release_maps();
  release_pools();
  release_programs();
}

void in_the_child() {
  release_maps();
  forget_pools();
  release_programs();
}

#endif

void bind_enums(nb::module_& m) {
  nb::enum_<Format>(m, "Format", "Block formats, as GGUF numbers them.")
      .value("F32", kF32)
      .value("F16", kF16)
      .value("Q4_0", kQ4_0)
      .value("Q5_0", kQ5_0)
      .value("Q8_0", kQ8_0)
      .value("Q4_K", kQ4_K)
      .value("Q5_K", kQ5_K)
      .value("Q6_K", kQ6_K)
      .value("BF16", kBF16);
  nb::enum_<Layout>(m, "Layout", "How a matrix lies: as in the file, or interleaved; rows may be summed as panels already.")
      .value("ROWS", Layout::kRows)
      .value("PANELS", Layout::kPanels)
      .value("STRIPS", Layout::kStrips)
      .value("ROWS_AS_PANELS", Layout::kRowsAsPanels);
  nb::enum_<CacheFormat>(m, "CacheFormat", "What the numbers of a KV cache are stored as.")
      .value("F32", CacheFormat::kF32)
      .value("BF16", CacheFormat::kBF16)
      .value("INT8", CacheFormat::kInt8);
  nb::enum_<LayerType>(m, "LayerType", "The attention of a layer; `Cache` has slots in this order.")
      .value("SLIDING", LayerType::kSliding)
      .value("FULL", LayerType::kFull);
}

void bind_runtime(nb::module_& m) {
  m.def("names", names, "The instruction sets that this machine runs, the fastest first.");
  m.def("name", [] { return std::string(chosen->name); }, "The one in use.");
  m.def("use", use, "name"_a, "Compute with another one; ValueError if the machine has it not.");
  m.def("set_threads", set_threads, "threads"_a);
  m.def("threads", [] { return pool().threads(); });
  m.def(
      "read",
      [](uintptr_t p, int64_t bytes) {
        nb::gil_scoped_release nogil;
        return chosen->read(at<const uint8_t>(p), bytes);
      },
      "address"_a, "bytes"_a, "Read memory with all threads and do nothing with it.");
  nb::class_<Watch>(m, "Watch", "Watches a map for as long as it lives; installs the handler.")
      .def(nb::init<uintptr_t, uint64_t>(), "address"_a, "bytes"_a);
  m.def("install_handler", install_handler, "Install the SIGBUS handler again, over others'.");
  m.def("lost", lost, "Of each watched map that misses something, where zeros begin, and its end.");
}

void bind_products(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix", "Weights somewhere in memory, or their leading part.")
      .def(
          "__init__",
          [](Matrix* self, uintptr_t blocks, int64_t stride, Format format, int64_t rows,
             int64_t columns, uintptr_t index, Layout layout) {
            new (self) Matrix{at<const uint8_t>(blocks), stride, format, rows, columns,
                              at<const int64_t>(index),  layout};
          },
          "blocks"_a, "stride"_a, "format"_a, "rows"_a, "columns"_a, "index"_a = 0,
          "layout"_a = Layout::kRows);
  m.def(
      "product",
      [](uintptr_t x, int64_t x_stride, bool x_bf16, int64_t tokens, const Matrix& w, uintptr_t y,
         int64_t y_stride, bool y_bf16) {
        nb::gil_scoped_release nogil;
        chosen->product(
            {activations(x, x_stride, x_bf16), tokens, w, activations(y, y_stride, y_bf16)});
      },
      "x"_a, "x_stride"_a, "x_bf16"_a, "tokens"_a, "w"_a, "y"_a, "y_stride"_a, "y_bf16"_a,
      "y (tokens, rows) = x (tokens, columns) times w transposed.");
  m.def(
      "gather",
      [](uintptr_t ids, int64_t count, const Matrix& w, uintptr_t y, int64_t y_stride,
         bool y_bf16) {
        nb::gil_scoped_release nogil;
        chosen->gather(w, at<const int64_t>(ids), count, activations(y, y_stride, y_bf16));
      },
      "ids"_a, "count"_a, "w"_a, "y"_a, "y_stride"_a, "y_bf16"_a,
      "The rows `ids` of w: y (count, columns).");
  m.def(
      "panel_bytes",
      [](Format format, int64_t columns) { return chosen->panel_bytes(format, columns); },
      "format"_a, "columns"_a, "Bytes of sixteen rows, interleaved; 0 for plain floats.");
  m.def(
      "interleave",
      [](const Matrix& rows, int64_t first, int64_t stride, uintptr_t out) {
        nb::gil_scoped_release nogil;
        chosen->interleave(rows, first, stride, at<uint8_t>(out));
      },
      "rows"_a, "first"_a, "stride"_a, "out"_a,
      "Make rows the panels from `first` on, or strips, `stride` bytes for a line of all panels.");
  m.def(
      "unpack",
      [](uintptr_t address, int64_t stride, Format format, int64_t rows, int64_t columns,
         uintptr_t out) {
        nb::gil_scoped_release nogil;
        chosen->unpack({at<const uint8_t>(address), stride, format, rows, columns, nullptr,
                        Layout::kRows},
                       at<float>(out));
      },
      "address"_a, "stride"_a, "format"_a, "rows"_a, "columns"_a, "out"_a,
      "Weights, rows `stride` bytes apart, as float32: out (rows, columns). To the bit what\n"
      "`quants.unpack` defines.");
  m.def(
      "pack", pack, "x"_a, "rows"_a, "columns"_a, "format"_a, "out"_a,
      "x (rows, columns) float32 as weights, out (rows, bytes of a row), to the bit what\n"
      "`quants.pack` defines: Q8_0, Q4_0, F32, F16 or BF16, ValueError for others. False where a\n"
      "block has a number that is not finite or too large for its scale; plain floats keep any.");
  m.def(
      "argmax",
      [](uintptr_t x, int64_t count, uintptr_t maxima) {
        nb::gil_scoped_release nogil;
        return argmax(at<const float>(x), count, at<const float>(maxima));
      },
      "x"_a, "count"_a, "maxima"_a = 0,
      "The place of the largest, the first of several. With the maxima of every MAXIMA_BLOCK of\n"
      "them (as of `Call`, of one row) only these and one block are read.");
  m.def(
      "block_maxima",
      [](uintptr_t x, int64_t count, uintptr_t maxima) {
        nb::gil_scoped_release nogil;
        return chosen->block_maxima(at<const float>(x), 0, count, at<float>(maxima));
      },
      "x"_a, "count"_a, "maxima"_a,
      "The largest of every MAXIMA_BLOCK of x (count,), the last of which may be fewer; whether all\n"
      "are finite.");
  m.attr("MAXIMA_BLOCK") = kMaximaBlock;
}

using LayerTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t>;
using SlotTuple = std::pair<uintptr_t, int64_t>;

void init_cache(KvCache* self, const std::vector<LayerTuple>& layers,
                const std::vector<SlotTuple>& slots, CacheFormat format, int64_t kv_heads,
                int64_t head_dim) {
  if (slots.size() != kLayerTypes) throw nb::value_error("slots are of two types of layer");
  new (self) KvCache{.layers = {}, .slots = {}, .format = format, .heads = kv_heads, .d = head_dim};
  for (const auto& [k, v, k_scales, v_scales] : layers)
    self->layers.push_back(
        {.k = {at<void>(k), at<uint16_t>(k_scales)}, .v = {at<void>(v), at<uint16_t>(v_scales)}});
  for (int i = 0; i < kLayerTypes; i++)
    self->slots[i] = {at<int64_t>(slots[i].first), slots[i].second, 0};
}

std::vector<int64_t> used_slots(const KvCache& cache) {
  std::vector<int64_t> used;
  for (const SlotPositions& slots : cache.slots) used.push_back(slots.used);
  return used;
}

void use_slots(KvCache& cache, const std::vector<int64_t>& used) {
  if (used.size() != kLayerTypes) throw nb::value_error("slots are of two types of layer");
  for (int i = 0; i < kLayerTypes; i++) cache.slots[i].used = used[i];
}

void init_call(Call* self, uintptr_t ids, std::vector<CallPiece> pieces,
               std::optional<Matrix> per_layer_rows, uintptr_t scores, uintptr_t maxima) {
  new (self) Call{.ids = at<const int64_t>(ids),
                  .pieces = std::move(pieces),
                  .per_layer_rows = per_layer_rows,
                  .scores = at<float>(scores),
                  .maxima = at<float>(maxima)};
}

bool run(Program& program, Call& call) {
  if (const char* fault = program.fault(call)) throw nb::value_error(fault);
  nb::gil_scoped_release nogil;
  program.run(call);
  return call.finite;
}

constexpr const char* kCacheDoc = R"(Keys and values of one sequence, by address.

`layers` has for each layer that owns keys k, v and the scales of both, `slots` for each type of
layer the positions in the slots and how many slots there are. `used` says of each type how many of
them are in use, a step's own among them; whoever asks for a step sets it before.)";

constexpr const char* kPieceDoc = R"(Consecutive tokens of one sequence, from `position` on.

`logits_to_keep` of the last tokens are scored. `attend_until` is the last position that each token
sees, 0 for its own; `inputs_embeds`, 0 for none, stands for the embeddings of the ids.)";

constexpr const char* kCallDoc = R"(One step of a program: the tokens of some pieces, by address.

`ids` are those of all pieces, one behind the other. Pieces of at most FEW_TOKENS come first, then
those of which at most so many are scored. `scores` (tokens that are scored, vocabulary) are
written, soft-capped, and the largest of every MAXIMA_BLOCK of a token's to `maxima` (tokens,
ceil(vocabulary / MAXIMA_BLOCK)), 0 for none.)";

void bind_call(nb::module_& m) {
  m.attr("FEW_TOKENS") = kFewTokens;
  nb::class_<KvCache>(m, "Cache", kCacheDoc)
      .def("__init__", init_cache, nb::kw_only(), "layers"_a, "slots"_a, "format"_a, "kv_heads"_a,
           "head_dim"_a)
      .def_prop_rw("used", used_slots, use_slots);
  nb::class_<CallPiece>(m, "Piece", kPieceDoc)
      .def(
          "__init__",
          [](CallPiece* self, std::shared_ptr<KvCache> cache, int64_t position, int64_t tokens,
             int64_t logits_to_keep, uintptr_t attend_until, uintptr_t inputs_embeds) {
            new (self) CallPiece{std::move(cache),
                                 position,
                                 tokens,
                                 logits_to_keep,
                                 at<const int64_t>(attend_until),
                                 at<const float>(inputs_embeds)};
          },
          "cache"_a, "position"_a, "tokens"_a, "logits_to_keep"_a, "attend_until"_a = 0,
          "inputs_embeds"_a = 0);
  nb::class_<Call>(m, "Call", kCallDoc)
      .def("__init__", init_call, "ids"_a, "pieces"_a, "per_layer_rows"_a.none(), "scores"_a,
           "maxima"_a = 0);
}

void bind_program(nb::module_& m) {
  nb::class_<Norm>(m, "Norm", "RMSNorm: x / rms(x) * (offset + weight), or without a weight (0).")
      .def(
          "__init__",
          [](Norm* self, uintptr_t weight, float offset, float eps) {
            new (self) Norm{at<const float>(weight), offset, eps};
          },
          "weight"_a, "offset"_a, "eps"_a);
  nb::class_<AltUp>(m, "AltUp", "A layer's coefficients, by address, float32.")
      .def(
          "__init__",
          [](AltUp* self, const Norm& router_norm, uintptr_t modality_router,
             uintptr_t prediction_coefs, uintptr_t correction_coefs,
             uintptr_t correct_output_scale) {
            new (self) AltUp{router_norm, at<const float>(modality_router),
                             at<const float>(prediction_coefs), at<const float>(correction_coefs),
                             at<const float>(correct_output_scale)};
          },
          "router_norm"_a, "modality_router"_a, "prediction_coefs"_a, "correction_coefs"_a,
          "correct_output_scale"_a);
  nb::class_<Program>(m, "Program", "A decoder's forward as a list of steps over buffers.")
      .def("__init__", [](Program* self) { new (self) Program(*chosen); })
      .def("buffer", &Program::buffer, "width"_a, "A new buffer, (tokens, width); its number.")
      .def("embed", &Program::embed, "table"_a, "scale"_a, "out"_a)
      .def("rotary_embedding", &Program::rotary_embedding, "inv_freq"_a, "layer_type"_a)
      .def("norm", &Program::norm, "x"_a, "n"_a, "out"_a)
      .def("add_norm", &Program::add_norm, "x"_a, "y"_a, "n"_a, "next"_a.none(), "out"_a)
      .def("product", &Program::product, "x"_a, "weights"_a, "outs"_a)
      .def("geglu", &Program::geglu, "x"_a, "gate_proj"_a, "up_proj"_a, "gates"_a, "ups"_a)
      .def("sparse_geglu", &Program::sparse_geglu, "x"_a, "gate_proj"_a, "up_proj"_a,
           "std_multiplier"_a, "gates"_a, "ups"_a)
      .def("norm_rope_heads", &Program::norm_rope_heads, "x"_a, "head_dim"_a, "n"_a,
           "layer_type"_a.none())
      .def("store_kv", &Program::store_kv, "k"_a, "v"_a, "layer"_a, "layer_type"_a)
      .def("attend", &Program::attend, "q"_a, "layer"_a, "layer_type"_a, "heads"_a, "window"_a,
           "scale"_a, "out"_a)
      .def("keep_last_tokens", &Program::keep_last_tokens, "buffers"_a)
      .def("logits", &Program::logits, "x"_a, "head"_a, "cap"_a)
      .def("altup_predict", &Program::altup_predict, "streams"_a, "predicted"_a, "altup"_a)
      .def("altup_correct", &Program::altup_correct, "streams"_a, "predicted"_a, "activated"_a,
           "altup"_a, "scaled"_a)
      .def("laurel_residual", &Program::laurel_residual, "active"_a, "attended"_a,
           "post_attention_norm"_a, "x"_a, "laurel"_a, "post_laurel_norm"_a,
           "pre_feedforward_norm"_a, "out"_a, "normed"_a)
      .def("gate_per_layer_input", &Program::gate_per_layer_input, "gates"_a, "per_layer_inputs"_a,
           "layer"_a)
      .def("add_to_others", &Program::add_to_others, "streams"_a, "y"_a, "n"_a)
      .def("match_magnitude", &Program::match_magnitude, "x"_a, "target"_a, "scale"_a, "add"_a,
           "out"_a)
      .def("per_layer_inputs", &Program::per_layer_inputs, "projected"_a, "layers"_a, "n"_a,
           "projected_scale"_a, "table_scale"_a)
      .def("run", run, "call"_a,
           "Make the scores; whether all are finite. ValueError for pieces that cannot be run so,\n"
           "MemoryError where there is no room.");
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a model that lives until the interpreter ends is no mistake
  use(runnable()[0]);
#ifndef _WIN32
  pthread_atfork(before_fork, after_fork, in_the_child);
#endif
  m.doc() = "The native kernels (gemelo/kernels/csrc); `python dev/stub.py` writes their types.";
  bind_enums(m);
  bind_runtime(m);
  bind_products(m);
  bind_call(m);
  bind_program(m);
}
