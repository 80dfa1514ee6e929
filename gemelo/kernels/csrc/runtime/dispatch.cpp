// Run-time dispatch: which instruction sets were compiled in, and which of them this machine runs.

#include <cstring>
#include <initializer_list>

#include "runtime/kernels.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define GEMELO_DECLARE(isa)             \
  namespace isa {                       \
  extern const gemelo::Kernels kernels; \
  }
GEMELO_DECLARE(isa_generic)
#if defined(__x86_64__)
GEMELO_DECLARE(isa_avx2)
GEMELO_DECLARE(isa_avx2_vnni)
GEMELO_DECLARE(isa_avx512)
#ifdef __linux__
GEMELO_DECLARE(isa_amx)
#endif
#elif defined(__aarch64__)
GEMELO_DECLARE(isa_neon)
#endif

namespace gemelo {
namespace {

#if defined(__x86_64__)

// The processor is asked itself: compilers' builtins lack names, or the library behind them.
struct Cpuid {
  unsigned a, b, c, d;
  Cpuid(unsigned leaf, unsigned subleaf) : a(leaf), c(subleaf) {
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  }
};

bool all_of(unsigned word, std::initializer_list<int> bits) {
  for (int bit : bits)
    if (!(word >> bit & 1)) return false;
  return true;
}

// Whether the system keeps these parts of the registers (XCR0) when it changes threads; macOS says
// so of AVX-512 only once a process has used it.
bool keeps(unsigned parts) {
  if (!all_of(Cpuid(1, 0).c, {27})) return false;  // OSXSAVE: the question may be asked
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & parts) == parts;
}

// FMA, AVX, F16C; AVX2, BMI2.
bool has_avx2() {
  return Cpuid(0, 0).a >= 7 && keeps(0x06) && all_of(Cpuid(1, 0).c, {12, 28, 29}) &&
         all_of(Cpuid(7, 0).b, {5, 8});
}

bool has_avx_vnni() { return has_avx2() && all_of(Cpuid(7, 1).a, {4}); }

// F, DQ, BW, VL; VNNI; BF16.
bool has_avx512() {
  return has_avx2() && keeps(0xe6) && all_of(Cpuid(7, 0).b, {16, 17, 30, 31}) &&
         all_of(Cpuid(7, 0).c, {11}) && all_of(Cpuid(7, 1).a, {5});
}

#ifdef __linux__
// Bfloat16 tiles, tiles; then the kernel must lend this process the state, which only Linux is
// asked for.
bool has_amx() {
  if (!has_avx512() || !all_of(Cpuid(7, 0).d, {22, 24})) return false;
  constexpr long kRequestState = 0x1023, kTileData = 18;
  static const bool lent = syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
  return lent;
}
#endif

#elif defined(__aarch64__)

// Cortex-A72 (Raspberry Pi 4) and older have no dot product; every Apple processor has.
bool has_dot_product() {
#ifdef __linux__
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;
#endif
}

#endif

}  // namespace

const char* const* runnable() {
  static const char* names[8];
  static const bool once = [] {
    int n = 0;
#if defined(__x86_64__)
#ifdef __linux__
    if (has_amx()) names[n++] = "amx";
#endif
    if (has_avx512()) names[n++] = "avx512";
    if (has_avx_vnni()) names[n++] = "avx2_vnni";
    if (has_avx2()) names[n++] = "avx2";
#elif defined(__aarch64__)
    if (has_dot_product()) names[n++] = "neon";
#endif
    names[n++] = "generic";
    return true;
  }();
  (void)once;
  return names;
}

const Kernels* kernels_named(const char* name) {
  const Kernels* all[] = {
      &isa_generic::kernels,
#if defined(__x86_64__)
      &isa_avx2::kernels,    &isa_avx2_vnni::kernels, &isa_avx512::kernels,
#ifdef __linux__
      &isa_amx::kernels,
#endif
#elif defined(__aarch64__)
      &isa_neon::kernels,
#endif
  };
  for (const char* const* can = runnable(); *can; can++)
    for (const Kernels* kernels : all)
      if (!std::strcmp(name, *can) && !std::strcmp(name, kernels->name)) return kernels;
  return nullptr;
}

}  // namespace gemelo
