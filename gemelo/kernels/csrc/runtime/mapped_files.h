// A SIGBUS handler for memory-mapped files that are cut short while they are in use.
//
// The kernel answers a touch of a page that is gone with SIGBUS, which ends a process. For maps
// that are watched, the pages from there to the end of the map become zeros, and where it happened
// is noted; the work goes on, and whoever asked for it finds out afterwards
// (gemelo/weights/mapped.py, which leaves the signal alone where GEMELO_SIGBUS=off asks for that).
// Nothing is installed before the first map is watched.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace gemelo {

// Watches a map for as long as it lives. Whoever owns the map owns this too, so that no code of
// Python's, which an interrupt may cut short, stands between the end of one and of the other.
class Watch {
 public:
  Watch(uintptr_t begin, uint64_t bytes);
  ~Watch();
  Watch(const Watch&) = delete;

 private:
  struct Map* map_;
};

// Install the handler again, if a map was ever watched. Others may have put a handler of their own
// in place since the last map: it is kept, and gets every signal that is no touch of a watched map.
void install_handler();

// Of each watched map that misses something, where its zeros begin, and its end.
std::vector<std::pair<uintptr_t, uintptr_t>> lost();

// Around a fork: the table is not changed meanwhile.
void hold_maps();
void release_maps();

}  // namespace gemelo
