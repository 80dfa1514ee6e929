// Mapped files that are cut short while they are in use. The kernel answers a touch of a page that
// is gone with SIGBUS, which ends a process. For maps that are watched, the pages from there to the
// end of the map become zeros, and where it happened is noted; the work goes on, and whoever asked
// for it finds out afterwards (gemelo/weights/mapped.py).

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace gemelo {

// False where the system has no such signal, or where too many maps are watched already.
bool watch(uintptr_t begin, uint64_t bytes);
void unwatch(uintptr_t begin);

// Of each watched map that misses something, where its zeros begin, and its end.
std::vector<std::pair<uintptr_t, uintptr_t>> lost();

}  // namespace gemelo
