// What the two searches of dependent quantization share, with rates and for the distortion alone
// (spec/bitstream.md, "Dependent quantization"). Of all reconstruction indices q around a weight
// four matter, the nearest one of each residue of |q| mod 4: quantizer and parity of the integer
// follow from q. What a step of the search decides for the eight states waits in the integer's own
// memory until the search has reached the end.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "quantizer.h"

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace nnr {

// Residue mod 4 of |q|, by quantizer (parity of the state) and parity of the integer k, where
// |q| = 2 |k| - quantizer. Zero, which both quantizers have, stands in for -1, which none has.
inline constexpr int kResidue[2][2] = {{0, 2}, {3, 1}};

// Four states at a time: even states lead to states 0 to 3 by the residues 0 and 2, odd ones to 4
// to 7 by 1 and 3.
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadMask __attribute__((vector_size(16)));

// The four lanes' sign bits.
inline unsigned bits_of(QuadMask mask) {
#ifdef __SSE__
  return static_cast<unsigned>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  return (mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8);
#endif
}

// How states were entered, by a byte of decisions (bit s: parity of the integer that led to state
// s). Byte s of the word: 8 * the state before, so that the byte is the next shift, and the residue
// times 64.
class WaysBack {
 public:
  constexpr WaysBack() : words_() {
    for (int decisions = 0; decisions < 256; ++decisions)
      for (int state = 0; state < kDqStates; ++state)
        for (int parity = 0; parity < 2; ++parity) {
          const int next = kNextState[state][parity];
          if ((decisions >> next & 1) != parity) continue;
          const uint64_t way = 8 * state | kResidue[state & 1][parity] << 6;
          words_[decisions] |= way << (8 * next);
        }
  }
  constexpr uint64_t operator[](int decisions) const { return words_[decisions]; }

 private:
  std::array<uint64_t, 256> words_;
};
inline constexpr WaysBack kWaysBack{};

// The elements in scan order, in pieces that are contiguous in memory.
class ScanPath {
 public:
  void append(uint64_t first, uint64_t count) {
    if (!pieces_.empty() && pieces_.back().second == first)
      pieces_.back().second += count;
    else
      pieces_.push_back({first, first + count});
  }

  // Calls visit(element) for the last `count` elements or all, last one first.
  template <class Visit>
  void for_each_backwards(uint64_t count, Visit&& visit) const {
    for (auto piece = pieces_.rbegin(); piece != pieces_.rend() && count > 0; ++piece)
      for (uint64_t i = piece->second; i > piece->first && count > 0; --count) visit(--i);
  }

 private:
  std::vector<std::pair<uint64_t, uint64_t>> pieces_;  // from, to
};

class DependentSearch {
 public:
  // `levels`: elements() integers, to be written.
  DependentSearch(const QuantizerInput& input, int32_t* levels)
      : input_(input), levels_(levels), inverse_step_(1 / input.step) {}

 protected:
  static constexpr float kUnreachable = std::numeric_limits<float>::infinity();

  double size_of(uint64_t i) const {
    return std::fabs(static_cast<double>(input_.weights[i]) * inverse_step_);
  }

  // Of the four |q| around a weight, the least; -1 where zero is the nearest below.
  static int least_index(double size) { return static_cast<int>(size) - 1; }

  // The one of a residue among `base` .. `base` + 3.
  static int index_of(int residue, int base) { return base + ((residue - base) & 3); }

  // Gives a magnitude the sign of weight i, without branches: signs are hard to predict.
  int32_t with_sign(int magnitude, uint64_t i) const {
    const int negative = -static_cast<int>(input_.weights[i] < 0);
    return (magnitude ^ negative) - negative;
  }

  const QuantizerInput& input_;
  int32_t* levels_;
  double inverse_step_;
  ScanPath path_;  // the elements whose decisions are in levels_
};

}  // namespace nnr
