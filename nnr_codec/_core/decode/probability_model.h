// Adaptive binary probability models and the layout of a tensor's contexts
// (spec/bitstream.md, "Probability models" and "Coded tensor").
#pragma once

#include <cstdint>

#include "tables.h"

namespace nnr {

#if !defined(NNR_SMALL_TABLES)

// What one bin does to the states, for one pair of shifts.
struct alignas(512) StateTransition {
  int8_t fast[256];       // the next state, by the state + 128
  int16_t slow_step[33];  // by the state over 128 + 16, rounded away from the bin's side
};

// All of them, from kStateStep.
struct StateTransitions {
  StateTransition of[2 * kShiftPairCount];  // bin 0 and bin 1 of each pair of shifts

  constexpr StateTransitions() : of() {
    for (int pair = 0; pair < kShiftPairCount; ++pair)
      for (int bin = 0; bin < 2; ++bin) {
        StateTransition& transition = of[2 * pair + bin];
        const int sign = bin ? 1 : -1;
        for (int state = -128; state < 128; ++state)
          transition.fast[state + 128] = static_cast<int8_t>(
              state + sign * (step(floor_shift(sign * state, 3)) >> kShiftPairs[pair][0]));
        for (int bucket = -16; bucket <= 16; ++bucket)
          transition.slow_step[bucket + 16] =
              static_cast<int16_t>(sign * (step(sign * bucket) >> kShiftPairs[pair][1]));
      }
  }

 private:
  // No state gets to bucket 16: the step of bucket 15 is 0.
  static constexpr int step(int bucket) { return bucket > 15 ? 0 : kStateStep[16 + bucket]; }
  static constexpr int floor_shift(int value, int shift) {
    return value >= 0 ? value >> shift : -((-value + (1 << shift) - 1) >> shift);
  }
};
inline constexpr StateTransitions kStateTransitions{};

#endif

// Two estimators of different inertia; their weighted sum S gives the probability.
struct ProbabilityModel {
  int16_t fast_state = 0;  // -128..127
  int16_t slow_state = 0;  // -2048..2047
  uint8_t shift_pair = 0;

  // Sets the model to initialization index `index`, 0..8; also what a reset does.
  void initialize(int index) {
    const ModelInitialization& init = kInitialization[index];
    fast_state = init.fast_state;
    slow_state = static_cast<int16_t>(init.combined - 16 * init.fast_state);
    shift_pair = init.shift_pair;
  }

  int64_t combined() const { return int64_t{16} * fast_state + slow_state; }

  void update(unsigned bin) { update(bin, shift_pair); }

  // The same for a pair of shifts that is known already.
  void update(unsigned bin, unsigned known_shift_pair) {
#if defined(NNR_SMALL_TABLES)
    const int sign = bin ? 1 : -1;
    const uint8_t(&shifts)[2] = kShiftPairs[known_shift_pair];
    fast_state = static_cast<int16_t>(
        fast_state + sign * (kStateStep[16 + floor_shift(sign * fast_state, 3)] >> shifts[0]));
    slow_state = static_cast<int16_t>(
        slow_state + sign * (kStateStep[16 + floor_shift(sign * slow_state, 7)] >> shifts[1]));
#else
    // All in 64 bits: what indexes a table needs no widening.
    const StateTransition& transition = kStateTransitions.of[2 * known_shift_pair + bin];
    const int64_t slow = slow_state;
    const int64_t rounding = 127 & (static_cast<int64_t>(bin) - 1);
    fast_state = transition.fast[int64_t{fast_state} + 128];
    slow_state = static_cast<int16_t>(slow + transition.slow_step[((slow + rounding) >> 7) + 16]);
#endif
  }

 private:
  static constexpr int floor_shift(int value, int shift) {
    return value >= 0 ? value >> shift : ~(~value >> shift);
  }
};

#if defined(NNR_SMALL_TABLES)

// A model with what the coder needs of it; where tables are to be small.
struct CodingModel {
  ProbabilityModel model;
  uint8_t likelier;  // the more probable symbol

  void initialize(int index) {
    model.initialize(index);
    likelier = model.combined() >= 0;
  }
  void update(unsigned bin) {
    model.update(bin);
    likelier = model.combined() >= 0;
  }

  // Width of the less probable symbol's interval.
  uint32_t lps_range(uint32_t range) const {
    const int combined = static_cast<int>(model.combined());
    const int column = combined >= 0 ? combined >> 7 : ~combined >> 7;
    return kLpsRange[(range >> 5) & 7][combined >= 0 ? column : column + 1 > 31 ? 31 : column + 1];
  }
};

#else

// The columns of kLpsRange for S >> 7 = -32..31, all eight rows in one word: the load depends on
// the model alone, and only a shift waits for the range.
struct PackedLpsRange {
  uint64_t column[64];
  constexpr PackedLpsRange() : column() {
    for (int i = 0; i < 64; ++i) {
      const int magnitude = i < 32 ? 32 - i : i - 32;
      for (int row = 0; row < 8; ++row)
        column[i] |= static_cast<uint64_t>(kLpsRange[row][magnitude > 31 ? 31 : magnitude])
                     << (8 * row);
    }
  }
};
inline constexpr PackedLpsRange kPackedLpsRange{};

// A model with what the coder needs of it, ready before the next bin asks: behind a branch that the
// processor did not foresee, nothing but the range is waited for.
struct alignas(16) CodingModel {
  uint64_t lps_column;  // of kPackedLpsRange
  ProbabilityModel model;
  uint8_t likelier;     // the more probable symbol

  void initialize(int index) {
    model.initialize(index);
    prepare();
  }

  void update(unsigned bin) {
    model.update(bin);
    prepare();
  }

  // Width of the less probable symbol's interval.
  uint32_t lps_range(uint32_t range) const {
    return static_cast<uint8_t>(lps_column >> ((range >> 2) & 0x38));
  }

 private:
  void prepare() {
    const int64_t combined = model.combined();
    lps_column = kPackedLpsRange.column[(combined >> 7) + 32];
    likelier = combined >= 0;
  }
};

#endif

inline constexpr int kMaxUnaryLength = 256;      // cabac_unary_length_minus1 is u(8)
inline constexpr int kMaxRemainderPrefix = 31;   // prefix bins of one remainder

// Index of each context within a tensor, for unary length N.
struct ContextLayout {
  static constexpr int kSignificance = 0;          // + 3 * state + left neighbour class
  static constexpr int kSignificanceParent = 24;   // + 2 * state + (|parent| > 1)
  static constexpr int kSignificanceHistory = 40;  // + state
  static constexpr int kSign = 48;                 // + left neighbour class
  static constexpr int kSignParent = 51;           // + (parent > 0)
  static constexpr int kGreater = 53;              // + 2 * j + (1 if negative)
  int unary_length;

  int greater_parent() const { return kGreater + 2 * unary_length; }
  int remainder() const { return kGreater + 4 * unary_length; }
  int index_flag() const { return remainder() + 34; }
  int row_skip_flag() const { return remainder() + 36; }
  int count() const { return remainder() + 37; }

  // Contexts of one integer's bins. `parent`: the parent's integer there, 0 if there is none;
  // `left`: neighbour_class of the integer before; `history`: non-zero in an earlier stream.
  static int significance(int state, int left, int64_t parent, bool history) {
    if (history) return kSignificanceHistory + state;
    if (parent == 0) return kSignificance + 3 * state + left;
    return kSignificanceParent + 2 * state + (parent > 1 || parent < -1 ? 1 : 0);
  }
  static int sign(int left, int64_t parent) {
    if (parent == 0) return kSign + left;
    return kSignParent + (parent > 0 ? 1 : 0);
  }
  int greater(int j, bool negative, int64_t parent) const {
    if (parent == 0) return kGreater + 2 * j + (negative ? 1 : 0);
    return greater_parent() + 2 * j + ((parent < 0 ? -parent : parent) >= j ? 0 : 1);
  }
};

// Class of a left neighbour: 0 zero, 1 negative, 2 positive.
inline int neighbour_class(int64_t k) { return k == 0 ? 0 : (k < 0 ? 1 : 2); }

inline constexpr int kMaxContexts = ContextLayout::kGreater + 4 * kMaxUnaryLength + 37;

// Room for any tensor's models, each with the index that a reset sets it back to.
struct ContextRoom {
  CodingModel models[kMaxContexts];
  uint8_t index[kMaxContexts];
};

// The caller's room, for `ContextLayout::count()` models of one tensor.
struct BorrowedContextRoom {
  CodingModel* models;
  uint8_t* index;
};

// A tensor's models.
template <class Room>
struct Contexts : Room {
  using Room::index;
  using Room::models;
  int count = 0;

  void start(const ContextLayout& layout) {
    count = layout.count();
    for (int i = 0; i < count; ++i) set(i, 0);
  }
  void set(int context, int initialization_index) {
    index[context] = static_cast<uint8_t>(initialization_index);
    models[context].initialize(initialization_index);
  }
  void reset() {
    for (int i = 0; i < count; ++i) models[i].initialize(index[i]);
  }
};

using ContextSet = Contexts<ContextRoom>;

}  // namespace nnr
