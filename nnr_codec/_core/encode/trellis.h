// The decisions of a Viterbi search that are still open: a window that slides along the scan.
// A decision leaves when all survivors agree on it, or at last when the window is full: runs of
// zeros can keep survivors of equal cost apart for ever.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace nnr {

// How each state is entered at one element, written out.
template <int kStates>
struct SurvivorStep {
  uint64_t element;
  int32_t levels[kStates];  // the integer with which the survivor enters each state
  uint8_t sources[kStates];  // the state that it comes from

  int from(int state) const { return sources[state]; }
  int32_t level(int state) const { return levels[state]; }
};

template <int kStates>
class SurvivorWindow {
 public:
  using Step = SurvivorStep<kStates>;

  Step& push(uint64_t element) {
    steps_.emplace_back();
    steps_.back().element = element;
    return steps_.back();
  }

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
      for (int i = 0; i < count; ++i) ends[i] = static_cast<uint8_t>(steps_[length].from(ends[i]));
      count = distinct(ends, count);
    }
    if (count == 1) emit_path(ends[0], length, emit);
  }

  size_t size() const { return steps_.size(); }

  // The state that the survivor now in `state` was in behind the first `length` steps.
  int ancestor(int state, size_t length) const {
    for (size_t t = steps_.size(); t > length; --t) state = steps_[t - 1].from(state);
    return state;
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
      state = steps_[t].from(state);
    }
    for (size_t t = 0; t < length; ++t) emit(steps_[t].element, steps_[t].level(path_[t]));
    steps_.erase(steps_.begin(), steps_.begin() + static_cast<std::ptrdiff_t>(length));
  }

  std::vector<Step> steps_;
  std::vector<uint8_t> path_;
};

inline constexpr double kUnreachable = std::numeric_limits<double>::infinity();

// A trellis in progress: the cost of the survivor in each state, and how it came there. The
// search starts in state 0.
template <int kStates>
class Trellis {
 public:
  Trellis() {
    for (double& cost : cost_) cost = kUnreachable;
    cost_[0] = 0;
  }

  // Hands decide(element, level) the decisions on which all survivors agree.
  template <class Decide>
  void settle(Decide&& decide) {
    const double lowest = cost_[best_state()];
    bool live[kStates];
    for (int s = 0; s < kStates; ++s) {
      live[s] = cost_[s] < kUnreachable;
      cost_[s] -= lowest;  // costs stay small, so that they stay exact
    }
    window_.emit_common(live, decide);
    if (window_.size() >= kFullWindow) decide_oldest(decide);
  }

  // Hands decide(element, level) all open decisions of the best survivor.
  template <class Decide>
  void finish(Decide&& decide) {
    window_.emit_all(best_state(), decide);
  }

 private:
  static constexpr size_t kFullWindow = 4096;

  // Decides the older half of a full window as the best survivor has it; survivors that have it
  // otherwise are given up.
  template <class Decide>
  void decide_oldest(Decide& decide) {
    const size_t half = window_.size() / 2;
    const int kept = window_.ancestor(best_state(), half);
    bool live[kStates];
    for (int s = 0; s < kStates; ++s) {
      if (cost_[s] < kUnreachable && window_.ancestor(s, half) != kept) cost_[s] = kUnreachable;
      live[s] = cost_[s] < kUnreachable;
    }
    window_.emit_common(live, decide);
  }

 protected:
  int best_state() const {
    int best = 0;
    for (int s = 1; s < kStates; ++s)
      if (cost_[s] < cost_[best]) best = s;
    return best;
  }

  SurvivorWindow<kStates> window_;
  double cost_[kStates];
};

}  // namespace nnr
