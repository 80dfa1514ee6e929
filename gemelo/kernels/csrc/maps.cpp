#include "maps.h"

#if defined(__unix__) || defined(__APPLE__)

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>

namespace gemelo {

namespace {

#ifdef MAP_NORESERVE
constexpr int kZeros = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
#else
constexpr int kZeros = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
#endif

// A handler may read nothing that a lock protects, so this is a table and not a list.
struct Map {
  std::atomic<uintptr_t> begin{0}, end{0}, lost{0};  // begin 0: free; lost: to the end, or 0
};
constexpr int kMost = 1024;
Map maps[kMost];
std::atomic<int> used{0};  // of these, at most
std::mutex changes;
struct sigaction before;

bool replace(uintptr_t address) {
  const uintptr_t page = address & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
  for (int i = 0; i < used; i++) {
    Map& map = maps[i];
    const uintptr_t begin = map.begin, end = map.end;
    if (!begin || address < begin || address >= end) continue;
    if (mmap((void*)page, end - page, PROT_READ | PROT_WRITE, kZeros, -1, 0) == MAP_FAILED)
      return false;
    uintptr_t known = map.lost;  // a later touch may be of an earlier page
    while ((!known || page < known) && !map.lost.compare_exchange_weak(known, page)) continue;
    return true;
  }
  return false;
}

void missed(int signal, siginfo_t* info, void*) {
  const int error = errno;
  const bool touched = info->si_code > 0;  // else somebody sent it
  if (!touched || !replace((uintptr_t)info->si_addr)) {
    sigaction(signal, &before, nullptr);  // as it would have gone: what touched runs again
    if (!touched) raise(signal);
  }
  errno = error;
}

// Others may have put their own handler in place since the last map.
void listen() {
  struct sigaction now;
  sigaction(SIGBUS, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == missed) return;
  before = now;
  struct sigaction ours = {};
  ours.sa_sigaction = missed;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGBUS, &ours, nullptr);
}

}  // namespace

bool watch(uintptr_t begin, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(changes);
  int place = 0;
  while (place < used && maps[place].begin) place++;
  if (place == kMost) return false;
  listen();
  maps[place].lost = 0;
  maps[place].end = begin + bytes;
  maps[place].begin = begin;
  if (place == used) used++;
  return true;
}

void unwatch(uintptr_t begin) {
  std::lock_guard<std::mutex> lock(changes);
  for (int i = 0; i < used; i++)
    if (maps[i].begin == begin) maps[i].begin = 0;
}

std::vector<std::pair<uintptr_t, uintptr_t>> lost() {
  std::vector<std::pair<uintptr_t, uintptr_t>> found;
  for (int i = 0; i < used; i++)
    if (maps[i].begin && maps[i].lost) found.push_back({maps[i].lost, maps[i].end});
  return found;
}

}  // namespace gemelo

#else

namespace gemelo {
bool watch(uintptr_t, uint64_t) { return false; }
void unwatch(uintptr_t) {}
std::vector<std::pair<uintptr_t, uintptr_t>> lost() { return {}; }
}  // namespace gemelo

#endif
