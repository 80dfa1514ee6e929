// A thread pool: a job is one function that all of its threads run, with barriers inside it.
//
// Starting and joining threads for every product costs more than a small product. These spin for a
// moment after each job, since the next one usually follows within microseconds, and then sleep. A
// job that throws in one thread ends in all of them, at their next barrier, and the caller gets
// what was thrown.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace gemelo {

class Worker;

class Pool {
 public:
  explicit Pool(int threads);
  Pool(const Pool&) = delete;
  int threads() const { return threads_; }

  // Run job(worker) on every thread, the caller's included; one job at a time. Throws what the
  // first of them threw.
  using Job = void (*)(void* context, Worker& worker);
  void run(Job job, void* context);

 private:
  friend class Worker;
  friend void hold_pools();
  friend void release_pools();
  void serve(int index, int hoped_for);
  void work(Worker& worker);
  void end_job();
  void barrier(Worker& worker);

  int threads_;         // as many as the system gave; fixed before the first job
  std::mutex one_job_;  // at a time
  Job job_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> round_{0};   // jobs begun
  alignas(64) std::atomic<int> busy_{0};         // workers that have not finished the job
  alignas(64) std::atomic<int> arrived_{0};      // threads at the barrier
  alignas(64) std::atomic<uint64_t> passed_{0};  // barriers passed
  std::atomic<bool> failed_{false};              // whether a thread of the job threw
  alignas(64) std::atomic<int64_t> taken_{0};    // pieces dealt since the last of them
  alignas(64) std::atomic<int> asleep_{0};
  std::exception_ptr failure_;  // what the first threw
  std::mutex sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// A thread as its job sees it.
class Worker {
 public:
  Worker(Pool& pool, int index, int count) : pool(pool), index(index), count(count) {}
  Pool& pool;
  const int index, count;

  // Wait until every thread of the job is here, fetching meanwhile what will be read soon.
  void barrier() {
    if (count > 1) pool.barrier(*this);
    dealt_ = 0;
    taken_ = -1;
  }

  // This thread's part of `units`, as [begin, end) in whole multiples of `step`.
  void share(int64_t units, int64_t step, int64_t& begin, int64_t& end) const {
    share_steps(steps(units, step), step, begin, end);
    if (end > units) end = units;
    if (begin > units) begin = units;
  }

  // The same for work that takes long: body(begin, end) for most of it as above, then for pieces of
  // the rest, which go to whoever is done first. Every thread calls it with the same numbers.
  template <class Body>
  void deal(int64_t units, int64_t step, const Body& body) {
    const int64_t all = steps(units, step), own = dealt_evenly(all);
    const int64_t rest = all - own, pieces = rest < kPieces * count ? rest : kPieces * count;
    int64_t begin, end;
    share_steps(own, step, begin, end);
    const auto until = [&](int64_t end) { return end < units ? end : units; };
    if (begin < until(end)) body(begin, until(end));
    while (pieces) {
      if (taken_ < 0) taken_ = pool.taken_.fetch_add(1, std::memory_order_relaxed);
      const int64_t piece = taken_ - dealt_;
      if (piece >= pieces) break;  // a piece of what is dealt next
      taken_ = -1;
      body((own + rest * piece / pieces) * step, until((own + rest * (piece + 1) / pieces) * step));
    }
    dealt_ += pieces;
  }
  // Where this thread begins.
  int64_t first(int64_t units, int64_t step) const {
    int64_t begin, end;
    share_steps(dealt_evenly(steps(units, step)), step, begin, end);
    return begin;
  }

  // These bytes will be read soon.
  void prefetch_hint(const uint8_t* bytes, int64_t count) {
    hint_ = bytes;
    hint_end_ = bytes + count;
  }

 private:
  friend class Pool;
  static constexpr int kRest = 8, kPieces = 8;
  static int64_t steps(int64_t units, int64_t step) { return (units + step - 1) / step; }
  int64_t dealt_evenly(int64_t steps) const { return count > 1 ? steps - steps / kRest : steps; }
  void share_steps(int64_t steps, int64_t step, int64_t& begin, int64_t& end) const {
    begin = steps * index / count * step;
    end = steps * (index + 1) / count * step;
  }

  int64_t dealt_ = 0;   // pieces of what was dealt since the last barrier
  int64_t taken_ = -1;  // the piece that is this thread's next, when there is one
  const uint8_t *hint_ = nullptr, *hint_end_ = nullptr;
};

// The pool of this process with as many threads as were asked for, made on first use.
Pool& pool();
void set_threads(int threads);

// Around a fork: no job runs meanwhile. The child has none of the workers, and makes new pools.
void hold_pools();
void release_pools();
void forget_pools();

template <class Function>
void parallel(Function&& function) {
  pool().run([](void* context, Worker& worker) { (*static_cast<Function*>(context))(worker); },
             &function);
}

}  // namespace gemelo
