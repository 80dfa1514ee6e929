// The door to Python: addresses and sizes in, next to nothing out. Everything is checked by the
// callers: gemelo/kernels/cpu.py and panels.py, engine/graphs.py, weights/mapped.py.

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>

#include "program/program.h"
#include "runtime/kernels.h"
#include "runtime/mapped_files.h"

namespace nb = nanobind;
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

Activations activations(uintptr_t data, int64_t stride, bool bf16) {
  return {reinterpret_cast<void*>(data), stride, bf16};
}

Matrix matrix(uintptr_t blocks, int64_t stride, int format, int64_t rows, int64_t columns,
              uintptr_t index, int layout) {
  return {reinterpret_cast<const uint8_t*>(blocks), stride,        format, rows, columns,
          reinterpret_cast<const int64_t*>(index),  (Layout)layout};
}

Norm norm_of(uintptr_t weight, float offset, float eps) {
  return {reinterpret_cast<const float*>(weight), offset, eps};
}

Kept kept(uintptr_t numbers, uintptr_t scales) {
  return {reinterpret_cast<void*>(numbers), reinterpret_cast<uint16_t*>(scales)};
}

const float* floats_at(uintptr_t p) { return reinterpret_cast<const float*>(p); }
const int64_t* numbers_at(uintptr_t p) { return reinterpret_cast<const int64_t*>(p); }

// One call of a program: whether its scores are finite. `embeds` stand for those of the ids (0:
// they do not). `tables` has for each kind of layer the positions of the slots, their stride from
// row to row, how many slots there are and how many are used; `caches` for each layer k, v, the
// scales of both and the stride of a row.
bool run(Program& program, uintptr_t ids, uintptr_t positions, uintptr_t reach, uintptr_t embeds,
         int64_t rows, int64_t tokens_a_row, int64_t keep,
         const std::vector<std::tuple<uintptr_t, int64_t, int64_t, int64_t>>& tables,
         const std::vector<std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t>>& caches,
         int format, int64_t heads, int64_t d, const Matrix* told, uintptr_t out) {
  Call call{};
  call.ids = numbers_at(ids);
  call.positions = numbers_at(positions);
  call.reach = numbers_at(reach);
  call.embeds = embeds ? floats_at(embeds) : nullptr;
  call.rows = rows;
  call.tokens_a_row = tokens_a_row;
  call.keep = keep;
  for (int kind = 0; kind < kKinds; kind++) {
    const auto& [table, stride, capacity, used] = tables[kind];
    call.tables[kind] = {reinterpret_cast<int64_t*>(table), stride, capacity, used};
  }
  for (const auto& [k, v, k_scales, v_scales, stride] : caches)
    call.caches.push_back(
        {kept(k, k_scales), kept(v, v_scales), stride, static_cast<CacheFormat>(format), heads, d});
  call.told = told;
  call.out = reinterpret_cast<float*>(out);
  nb::gil_scoped_release nogil;
  program.run(call);
  return call.finite;
}

// Every thread looks where it wrote when these were scores.
int64_t largest_at(const float* x, int64_t count) {
  std::vector<int64_t> found(pool().threads());
  parallel([&](Worker& worker) {
    int64_t begin, end;
    worker.share(count, kShare, begin, end);
    found[worker.index] = chosen->largest_at(x, begin, end);
  });
  int64_t best = 0;
  for (int64_t at : found)
    if (at < count && x[at] > x[best]) best = at;
  return best;
}

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

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a model that lives until the interpreter ends is no mistake
  use(runnable()[0]);
  pthread_atfork(before_fork, after_fork, in_the_child);
  m.def("names", names);
  m.def("name", [] { return std::string(chosen->name); });
  m.def("use", use);
  m.def("set_threads", set_threads);
  m.def("threads", [] { return pool().threads(); });
  m.def("product", [](uintptr_t x, int64_t x_stride, bool x_bf16, int64_t tokens, const Matrix& w,
                      uintptr_t y, int64_t y_stride, bool y_bf16) {
    nb::gil_scoped_release nogil;
    chosen->product(
        {activations(x, x_stride, x_bf16), tokens, w, activations(y, y_stride, y_bf16)});
  });
  m.def("gather", [](uintptr_t ids, int64_t count, const Matrix& w, uintptr_t y, int64_t y_stride,
                     bool y_bf16) {
    nb::gil_scoped_release nogil;
    chosen->gather(w, numbers_at(ids), count, activations(y, y_stride, y_bf16));
  });
  m.def("panel_bytes",
        [](int format, int64_t columns) { return chosen->panel_bytes(format, columns); });
  m.def("read", [](uintptr_t p, int64_t bytes) {
    nb::gil_scoped_release nogil;
    return chosen->read(reinterpret_cast<const uint8_t*>(p), bytes);
  });
  m.def("largest_at", [](uintptr_t x, int64_t count) {
    nb::gil_scoped_release nogil;
    return largest_at(floats_at(x), count);
  });
  nb::class_<Watch>(m, "Watch").def(nb::init<uintptr_t, uint64_t>());
  m.def("listen", listen);
  m.def("lost", lost);
  m.def("interleave", [](const Matrix& rows, int64_t first, int64_t stride, uintptr_t out) {
    nb::gil_scoped_release nogil;
    chosen->interleave(rows, first, stride, reinterpret_cast<uint8_t*>(out));
  });

  nb::class_<Matrix>(m, "Matrix")
      .def("__init__", [](Matrix* self, uintptr_t blocks, int64_t stride, int format, int64_t rows,
                          int64_t columns, uintptr_t index, int layout) {
        new (self) Matrix(matrix(blocks, stride, format, rows, columns, index, layout));
      });
  nb::class_<Norm>(m, "Norm").def("__init__",
                                  [](Norm* self, uintptr_t weight, float offset, float eps) {
                                    new (self) Norm(norm_of(weight, offset, eps));
                                  });
  nb::class_<AltUp>(m, "AltUp")
      .def("__init__", [](AltUp* self, const Norm& router, uintptr_t route, uintptr_t predict,
                          uintptr_t correct, uintptr_t output_scale) {
        new (self) AltUp{router, floats_at(route), floats_at(predict), floats_at(correct),
                         floats_at(output_scale)};
      });
  nb::class_<Program>(m, "Program")
      .def("__init__", [](Program* self) { new (self) Program(*chosen); })
      .def("buffer", &Program::buffer)
      .def("embed", &Program::embed)
      .def("angles", &Program::angles)
      .def("norm", &Program::norm)
      .def("add_norm", &Program::add_norm)
      .def("product", &Program::product)
      .def("gated", &Program::gated)
      .def("sparse_gated", &Program::sparse_gated)
      .def("heads", &Program::heads)
      .def("keep", &Program::keep)
      .def("attend", &Program::attend)
      .def("cut", &Program::cut)
      .def("logits", &Program::logits)
      .def("predict", &Program::predict)
      .def("correct", &Program::correct)
      .def("meet", &Program::meet)
      .def("inform", &Program::inform)
      .def("add_to_others", &Program::add_to_others)
      .def("rescale", &Program::rescale)
      .def("combine", &Program::combine)
      .def("run", run, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
}
