// The decisions of a Viterbi search that are still open: a window that slides along the scan.
// Exact: a decision leaves only when all survivors agree on it.
#pragma once

#include <cstdint>
#include <vector>

namespace nnr {

template <int kStates>
class SurvivorWindow {
 public:
  struct Step {
    uint64_t element;
    int32_t level[kStates];  // the integer with which the survivor enters each state
    uint8_t from[kStates];   // the state that it comes from
  };

  Step& push(uint64_t element) {
    steps_.emplace_back();
    steps_.back().element = element;
    return steps_.back();
  }
  size_t size() const { return steps_.size(); }

  // Hands emit(element, level) all decisions that the survivors in live states share, in order.
  template <class Emit>
  void emit_common(const bool (&live)[kStates], Emit&& emit) {
    uint8_t ends[kStates];
    int count = 0;
    for (int s = 0; s < kStates; ++s)
      if (live[s]) ends[count++] = static_cast<uint8_t>(s);
    size_t length = steps_.size();
    while (length > 0 && count > 1) {
      --length;
      for (int i = 0; i < count; ++i) ends[i] = steps_[length].from[ends[i]];
      count = distinct(ends, count);
    }
    if (count == 1) emit_path(ends[0], length, emit);
  }

  // Hands emit(element, level) all open decisions of the survivor in `state`.
  template <class Emit>
  void emit_all(int state, Emit&& emit) {
    emit_path(state, steps_.size(), emit);
  }

 private:
  static int distinct(uint8_t (&states)[kStates], int count) {
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      bool seen = false;
      for (int j = 0; j < kept; ++j) seen |= states[j] == states[i];
      if (!seen) states[kept++] = states[i];
    }
    return kept;
  }

  // The first `length` steps of the path that is in `state` behind them.
  template <class Emit>
  void emit_path(int state, size_t length, Emit& emit) {
    path_.resize(length);
    for (size_t t = length; t-- > 0;) {
      path_[t] = static_cast<uint8_t>(state);
      state = steps_[t].from[state];
    }
    for (size_t t = 0; t < length; ++t) emit(steps_[t].element, steps_[t].level[path_[t]]);
    steps_.erase(steps_.begin(), steps_.begin() + static_cast<std::ptrdiff_t>(length));
  }

  std::vector<Step> steps_;
  std::vector<uint8_t> path_;
};

}  // namespace nnr
