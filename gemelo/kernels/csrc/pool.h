// Threads that stay: a job is one function that all of them run, with barriers inside it.
//
// Starting and joining threads for every product costs more than a small product. These spin for a
// moment after each job, since the next one usually follows within microseconds, and then sleep.

#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace gemelo {

struct Worker;

class Pool {
 public:
  explicit Pool(int threads);
  Pool(const Pool&) = delete;
  int threads() const { return threads_; }

  // Run job(worker) on every thread, the caller's included; one job at a time.
  using Job = void (*)(void* context, Worker& worker);
  void run(Job job, void* context);

 private:
  friend struct Worker;
  void serve(int index, int hoped_for);
  void barrier();

  int threads_;      // as many as the system gave; fixed before the first job
  std::mutex turn_;  // one job at a time
  Job job_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> round_{0};   // jobs begun
  alignas(64) std::atomic<int> busy_{0};         // workers that have not finished the job
  alignas(64) std::atomic<int> arrived_{0};      // threads at the barrier
  alignas(64) std::atomic<uint64_t> passed_{0};  // barriers passed
  alignas(64) std::atomic<int> asleep_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// A thread as its job sees it.
struct Worker {
  Pool& pool;
  const int index, count;

  // Wait until every thread of the job is here.
  void barrier() { pool.barrier(); }

  // This thread's part of `units`, as [begin, end) in whole multiples of `step`.
  void share(int64_t units, int64_t step, int64_t& begin, int64_t& end) const {
    const int64_t steps = (units + step - 1) / step;
    begin = steps * index / count * step;
    end = steps * (index + 1) / count * step;
    if (end > units) end = units;
    if (begin > units) begin = units;
  }
};

// The pool of this process with as many threads as were asked for, made on first use.
Pool& pool();
void set_threads(int threads);

template <class Function>
void parallel(Function&& function) {
  pool().run([](void* context, Worker& worker) { (*static_cast<Function*>(context))(worker); },
             &function);
}

}  // namespace gemelo
