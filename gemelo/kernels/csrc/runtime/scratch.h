// Workspace that a thread keeps between products: it grows to what was ever needed.

#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace gemelo {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() { release(); }

  // Room for `count` things, aligned to a page; what was in it may be gone. Throws std::bad_alloc.
  template <class T>
  T* room(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes > size_) {
      release();
      const size_t page = bytes < kHuge ? kSmall : kHuge;
      const size_t wanted = (bytes + page - 1) / page * page;
      void* p = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
      if (page == kHuge) madvise(p, wanted, MADV_HUGEPAGE);
#endif
      data_ = p;
      size_ = wanted;
    }
    return static_cast<T*>(data_);
  }

 private:
  static constexpr size_t kSmall = 4096, kHuge = size_t{1} << 21;
  void release() {
    if (data_) munmap(data_, size_);
    data_ = nullptr;
    size_ = 0;
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gemelo
