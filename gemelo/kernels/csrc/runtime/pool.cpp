// The threads of a pool: starting them, running a job, waiting at a barrier.

#include "runtime/pool.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

#include <map>
#include <system_error>
#include <utility>

namespace gemelo {
namespace {

constexpr int kSpins = 20000;    // about half a millisecond before a worker sleeps
constexpr int kPatience = 2000;  // and before a waiting thread lets others have its core

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
void spin_until(Condition condition) {
  for (int spins = 0; !condition(); spins++) {
    if (spins < kPatience) pause();
    else std::this_thread::yield();
  }
}

// Workers take the later cores of the process's mask, one each, when there is a core for each.
void pin(int index, int threads) {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) < threads) return;
  int nth = 0;
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (CPU_ISSET(core, &allowed) && nth++ == index) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(core, &one);
      pthread_setaffinity_np(pthread_self(), sizeof one, &one);
      return;
    }
  }
#else
  (void)index, (void)threads;
#endif
}

int default_threads() {
#ifdef __linux__
  cpu_set_t allowed;
  if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
  return (int)std::thread::hardware_concurrency();
}

// A pool for every number of threads that was ever asked for. None is destroyed: its sleeping
// threads cost nothing, and a job may be running on it.
std::map<int, Pool*>* pools = new std::map<int, Pool*>;
int wanted = 0;
std::mutex making;

}  // namespace

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads) {
  workers_.reserve(threads_);
  for (int i = 1; i < threads; i++) {
    try {
      workers_.emplace_back([this, i, threads] { serve(i, threads); });
    } catch (const std::system_error&) {
      threads_ = i;  // the system gives no more: these have to do
      return;
    }
  }
}

namespace {

struct Abandoned {};  // thrown at a barrier that another thread will not reach

}  // namespace

// A thread that threw inside a job would leave the others waiting at the next barrier for good: it
// says so, and they abandon the job there.
void Pool::work(Worker& worker) {
  try {
    job_(context_, worker);
  } catch (const Abandoned&) {
  } catch (...) {
    if (!failed_.exchange(true, std::memory_order_acq_rel)) failure_ = std::current_exception();
  }
}

// All threads are done with it.
void Pool::end_job() {
  if (!failed_.load(std::memory_order_acquire)) return;
  arrived_.store(0, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Pool::run(Job job, void* context) {
  std::lock_guard<std::mutex> lock(one_job_);
  Worker self{*this, 0, threads_};
  if (threads_ == 1) return job(context, self);
  job_ = job;
  context_ = context;
  busy_.store(threads_ - 1, std::memory_order_relaxed);
  taken_.store(0, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst)) {
    std::lock_guard<std::mutex> lock(sleep_);
    wake_.notify_all();
  }
  work(self);
  spin_until([this] { return busy_.load(std::memory_order_acquire) == 0; });
  end_job();
}

void Pool::serve(int index, int hoped_for) {
  pin(index, hoped_for);
  for (uint64_t seen = 0;; seen++) {
    const auto called = [&] { return round_.load(std::memory_order_acquire) != seen; };
    for (int spins = 0; spins < kSpins && !called(); spins++) pause();
    if (!called()) {
      std::unique_lock<std::mutex> lock(sleep_);
      asleep_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, called);
      asleep_.fetch_sub(1, std::memory_order_seq_cst);
    }
    Worker self{*this, index, threads_};
    work(self);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

void Pool::barrier(Worker& worker) {
  const uint64_t here = passed_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    taken_.store(0, std::memory_order_relaxed);
    passed_.fetch_add(1, std::memory_order_release);
    return;
  }
  const auto passed = [&] {
    if (passed_.load(std::memory_order_acquire) != here) return true;
    if (failed_.load(std::memory_order_acquire)) throw Abandoned{};
    return false;
  };
  for (; worker.hint_ < worker.hint_end_ && !passed(); worker.hint_ += 64)
    __builtin_prefetch(worker.hint_, 0, 2);
  spin_until(passed);
}

Pool& pool() {
  std::lock_guard<std::mutex> lock(making);
  if (!wanted) wanted = default_threads();
  Pool*& pool = (*pools)[wanted];
  if (!pool) pool = new Pool(wanted);
  return *pool;
}

void set_threads(int threads) {
  std::lock_guard<std::mutex> lock(making);
  wanted = threads < 1 ? 1 : threads;
}

void hold_pools() {
  making.lock();
  for (auto& [threads, pool] : *pools) pool->one_job_.lock();
}

void release_pools() {
  for (auto& [threads, pool] : *pools) pool->one_job_.unlock();
  making.unlock();
}

void forget_pools() {
  pools = new std::map<int, Pool*>;
  making.unlock();
}

}  // namespace gemelo
