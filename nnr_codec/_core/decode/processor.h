// Choice between a plain path and the same code compiled for newer processors, at run time. Both
// give the same results.
#pragma once

#if defined(__GNUC__) && defined(__x86_64__) && !defined(NNR_PLAIN_PATHS_ALONE)
#include <cpuid.h>
#endif

namespace nnr {

// With NNR_PLAIN_PATHS_ALONE defined there is no choice, and so no variable that holds it.

// A function for processors that shift by any register and count leading zeros in one instruction
// each (x86-64-v3, since 2013), with everything it calls; NNR_HAS_FAST_PATHS says whether there
// are such.
#if defined(__GNUC__) && defined(__x86_64__) && !defined(NNR_PLAIN_PATHS_ALONE)
#define NNR_HAS_FAST_PATHS 1
#define NNR_FAST_PATH __attribute__((target("bmi,bmi2,lzcnt"), flatten))
#else
#define NNR_HAS_FAST_PATHS 0
#define NNR_FAST_PATH
#endif

inline bool has_fast_instructions() {
#if NNR_HAS_FAST_PATHS
  // CPUID itself, as Clang's __builtin_cpu_supports does not know all of the three names.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool has_bmi = (ebx & bit_BMI) && (ebx & bit_BMI2);
  return has_bmi && __get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && (ecx & bit_LZCNT);
#else
  return false;
#endif
}

// Whether the paths for newer processors are taken; tests turn it off to compare.
#if defined(NNR_PLAIN_PATHS_ALONE)
inline constexpr bool fast_paths_enabled = false;
#else
inline bool fast_paths_enabled = has_fast_instructions();
#endif

}  // namespace nnr
