// The SIGBUS handler and its table of watched maps.

#include "runtime/mapped_files.h"

#if defined(__unix__) || defined(__APPLE__)

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>

namespace gemelo {

// A handler may read nothing that a lock protects, so this is a list that only grows: places are
// used again, and none is ever freed.
struct Map {
  std::atomic<uintptr_t> begin{0}, end{0}, lost{0};  // begin 0: free; lost: to the end, or 0
  Map* next = nullptr;
};

namespace {

#ifdef MAP_NORESERVE
constexpr int kZeros = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
#else
constexpr int kZeros = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
#endif

std::atomic<Map*> maps{nullptr};
std::mutex changes;

// Who heard the signal before the first map, and whom a signal is passed on to: the same, or
// whoever has put a handler over ours since.
struct sigaction below, before;
bool installed = false;

bool replace(uintptr_t address) {
  const uintptr_t page = address & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
  for (Map* map = maps; map; map = map->next) {
    const uintptr_t begin = map->begin, end = map->end;
    if (!begin || address < begin || address >= end) continue;
    if (mmap((void*)page, end - page, PROT_READ | PROT_WRITE, kZeros, -1, 0) == MAP_FAILED)
      return false;
    uintptr_t known = map->lost;  // a later touch may be of an earlier page
    while ((!known || page < known) && !map->lost.compare_exchange_weak(known, page)) continue;
    return true;
  }
  return false;
}

void on_sigbus(int signal, siginfo_t* info, void* context);

bool same(const struct sigaction& a, const struct sigaction& b) {
  if ((a.sa_flags ^ b.sa_flags) & SA_SIGINFO) return false;
  return a.sa_flags & SA_SIGINFO ? a.sa_sigaction == b.sa_sigaction : a.sa_handler == b.sa_handler;
}

struct sigaction ours() {
  struct sigaction action = {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  return action;
}

bool is_word(const struct sigaction& a, void (*word)(int)) {
  return !(a.sa_flags & SA_SIGINFO) && a.sa_handler == word;
}

struct sigaction in_place(int signal) {
  struct sigaction now;
  sigaction(signal, nullptr, &now);
  return now;
}

// A signal that is none of ours, as it would have gone without us. A handler that survives it finds
// us in place again. One that hands it back to whom it found before itself, as Python's
// faulthandler does, may mean us by that: then it is for those below.
void pass_on(int signal, siginfo_t* info, void* context, bool touched) {
  const bool handed_back = !same(in_place(signal), ours());
  const struct sigaction next = handed_back ? below : before;
  if (is_word(next, SIG_IGN) && !touched) return;
  sigaction(signal, &next, nullptr);
  if (handed_back || is_word(next, SIG_DFL) || is_word(next, SIG_IGN)) {
    if (!touched) raise(signal);
    return;  // what touched runs again
  }
  if (next.sa_flags & SA_SIGINFO) next.sa_sigaction(signal, info, context);
  else next.sa_handler(signal);
  const struct sigaction now = in_place(signal), again = ours();
  if (same(now, next)) sigaction(signal, &again, nullptr);
  else if (same(now, again)) sigaction(signal, &below, nullptr);
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  const bool touched = info->si_code > 0;  // else somebody sent it
  if (!touched || !replace((uintptr_t)info->si_addr)) pass_on(signal, info, context, touched);
  errno = error;
}

void install() {
  const struct sigaction now = in_place(SIGBUS), action = ours();
  if (same(now, action)) return;
  before = now;
  if (!installed) below = now;
  installed = true;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace

Watch::Watch(uintptr_t begin, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(changes);
  install();
  map_ = maps;
  while (map_ && map_->begin) map_ = map_->next;
  const bool is_new = !map_;
  if (is_new) map_ = new Map;
  map_->lost = 0;
  map_->end = begin + bytes;
  map_->begin = begin;
  if (!is_new) return;
  map_->next = maps;
  maps = map_;
}

Watch::~Watch() {
  std::lock_guard<std::mutex> lock(changes);
  map_->begin = 0;
}

void install_handler() {
  std::lock_guard<std::mutex> lock(changes);
  if (installed) install();
}

std::vector<std::pair<uintptr_t, uintptr_t>> lost() {
  std::vector<std::pair<uintptr_t, uintptr_t>> found;
  for (Map* map = maps; map; map = map->next)
    if (map->begin && map->lost) found.push_back({map->lost, map->end});
  return found;
}

void hold_maps() { changes.lock(); }
void release_maps() { changes.unlock(); }

}  // namespace gemelo

#else

namespace gemelo {
Watch::Watch(uintptr_t, uint64_t) {}
Watch::~Watch() {}
void install_handler() {}
std::vector<std::pair<uintptr_t, uintptr_t>> lost() { return {}; }
void hold_maps() {}
void release_maps() {}
}  // namespace gemelo

#endif
