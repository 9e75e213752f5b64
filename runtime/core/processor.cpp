#include "core/processor.h"

#include <cpuid.h>

namespace etcuda {
namespace {

// Read from the processor itself, for __builtin_cpu_supports of clang 14 does not know these three. They have
// no registers of their own, so that it does not depend on the operating system whether they can be used.
struct FeatureBits {
  bool f16c = false;
  bool movbe = false;
  bool lzcnt = false;

  FeatureBits() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0) {
      f16c = (ecx >> 29 & 1) != 0;
      movbe = (ecx >> 22 & 1) != 0;
    }
    if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) != 0) lzcnt = (ecx >> 5 & 1) != 0;
  }
};

const FeatureBits& feature_bits() {
  static const FeatureBits bits;
  return bits;
}

}  // namespace

bool processor_has(const std::string& isa) {
  __builtin_cpu_init();
  if (isa.empty() || isa == "x86-64") return true;
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  if (isa == "x86-64-v2") return v2;
  const bool v3 = v2 && processor_has_avx2_fma_f16c() && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && feature_bits().lzcnt && feature_bits().movbe;
  if (isa == "x86-64-v3") return v3;
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return isa == "x86-64-v4" && v4;
}

bool processor_has_avx2_fma_f16c() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && feature_bits().f16c;
}

}  // namespace etcuda
