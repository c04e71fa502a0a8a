// The survivors of the trellis of dependent quantization as the lanes of vectors.
#pragma once

#include <array>
#include <cstdint>

#include "quantizer.h"

namespace nnr {

// A value for each of the eight survivors, by the state that it is in. The alignment is that of
// processors with such registers: elsewhere, compilers would choose less.
typedef float Lanes __attribute__((vector_size(4 * kDqStates), aligned(4 * kDqStates)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kDqStates), aligned(4 * kDqStates)));

// What there is for each survivor, with and without dependent quantization. As template arguments,
// types would lose their alignment.
template <bool kDependent>
struct Survivors {
  typedef Lanes Values;
  typedef IntLanes Levels;
  static constexpr int kCount = kDqStates;
};
template <>
struct Survivors<false> {
  typedef float Values;
  typedef int32_t Levels;
  static constexpr int kCount = 1;
};

// What leads to a state: of the two states before it the first and the second one, each as
// 8 * the parity of its integer + its number.
struct WaysInto {
  std::array<int32_t, kDqStates> first{}, second{};

  constexpr WaysInto() {
    for (int before = 0; before < kDqStates; ++before)
      for (int parity = 0; parity < 2; ++parity)
        (before < kDqStates / 2 ? first : second)[kNextState[before][parity]] =
            kDqStates * parity + before;
  }
};
inline constexpr WaysInto kWaysInto;

// Puts in each place what was at another one of `values`, or of `others` behind them. `kWide`: the
// processor has registers of eight values, which it can shuffle.
template <bool kWide, class Vector>
inline void pick(Vector& values, const Vector& others, const IntLanes& places) {
#ifndef __clang__  // which shuffles by constants alone
  if constexpr (kWide) {
    values = __builtin_shuffle(values, others, places);
    return;
  }
#endif
  const Vector all[2] = {values, others};
  for (int s = 0; s < kDqStates; ++s)
    values[s] = all[places[s] / kDqStates][places[s] % kDqStates];
}
template <bool kWide, class Vector>
inline void pick(Vector& values, const IntLanes& places) {
  pick<kWide>(values, values, places);
}

}  // namespace nnr
