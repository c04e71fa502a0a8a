// Choice between a plain path and the same code compiled for newer processors, at run time. Both
// give the same results.
#pragma once

namespace nnr {

// A function for processors that shift by any register and count leading zeros in one instruction
// each (x86-64-v3, since 2013), with everything it calls; NNR_HAS_FAST_PATHS says whether there
// are such.
#if defined(__GNUC__) && defined(__x86_64__)
#define NNR_HAS_FAST_PATHS 1
#define NNR_FAST_PATH __attribute__((target("bmi,bmi2,lzcnt"), flatten))
#else
#define NNR_HAS_FAST_PATHS 0
#define NNR_FAST_PATH
#endif

inline bool has_fast_instructions() {
#if NNR_HAS_FAST_PATHS
  __builtin_cpu_init();
  return __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("lzcnt");
#else
  return false;
#endif
}

// Whether the paths for newer processors are taken; tests turn it off to compare.
inline bool fast_paths_enabled = has_fast_instructions();

}  // namespace nnr
