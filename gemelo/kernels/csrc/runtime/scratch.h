// Workspace that a thread keeps between products: it grows to what was ever needed.

#pragma once

#ifndef _WIN32
#include <sys/mman.h>
#endif

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
      void* p = pages(wanted);
      if (!p) throw std::bad_alloc();
      data_ = p;
      size_ = wanted;
    }
    return static_cast<T*>(data_);
  }

 private:
  static constexpr size_t kSmall = 4096, kHuge = size_t{1} << 21;
#ifdef _WIN32  // where large pages need a privilege that hardly anybody has
  static constexpr std::align_val_t kPage{kSmall};
  static void* pages(size_t bytes) { return ::operator new(bytes, kPage, std::nothrow); }
  static void give_back(void* p, size_t) { ::operator delete(p, kPage); }
#else
  static void* pages(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
    if (bytes >= kHuge) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
  }
  static void give_back(void* p, size_t bytes) { munmap(p, bytes); }
#endif
  void release() {
    if (data_) give_back(data_, size_);
    data_ = nullptr;
    size_ = 0;
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gemelo
