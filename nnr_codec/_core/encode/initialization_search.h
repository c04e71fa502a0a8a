// Finds the initialization index of every context: codes its bins once per index and takes the
// cheapest (spec/bitstream.md, "Encoder notes"). Of long runs of bins it looks at samples.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "bin_cost.h"
#include "binarization.h"

namespace nnr {

// The bins of one context under each of the nine indices.
class ContextTrial {
 public:
  ContextTrial() { restart(); }

  void add(unsigned bin) {
    buffer_[buffered_++] = static_cast<uint8_t>(bin);
    if (buffered_ == kBuffer) settle();
  }

  // All models start anew, as at a block row's end.
  void restart() {
    settle();
    leaders_ = kInitializationCount;
    for (int i = 0; i < kInitializationCount; ++i) {
      models_[i].initialize(i);
      group_[i] = i;
    }
  }

  // Cost of the bins so far (of the samples taken) under index `index`, in 1/4096 bit.
  uint64_t cost(int index) {
    settle();
    return cost_[index];
  }

 private:
  static constexpr int kBuffer = 512;    // bins of one sample
  static constexpr uint64_t kDense = 16; // samples before the first gaps

  // After kDense samples every second one is taken, after twice as many every fourth, and so on:
  // the choice hardly changes, and long tensors cost little more than short ones.
  static bool is_sample(uint64_t number) {
    if (number < kDense) return true;
    const auto stride = std::bit_floor(number / kDense) * 2;
    return number % stride == 0;
  }

  // Codes the buffered bins with every model that differs.
  void settle() {
    if (buffered_ == 0) return;
    if (is_sample(settled_++)) {
      uint64_t spent[kInitializationCount];
      switch (leaders_) {
        case 4: run<4>(spent); break;  // the usual case: one model for each pair of shifts
        case 5: run<5>(spent); break;
        case 6: run<6>(spent); break;
        case 7: run<7>(spent); break;
        case 8: run<8>(spent); break;
        default: run<9>(spent);
      }
      for (int i = 0; i < kInitializationCount; ++i) cost_[i] += spent[group_[i]];
      join();
    }
    buffered_ = 0;
  }

  // Codes the buffer with the first kCount models, side by side: they do not wait for each other.
  template <int kCount>
  void run(uint64_t* spent) {
    ProbabilityModel models[kCount];
    uint64_t sums[kCount] = {};
    for (int k = 0; k < kCount; ++k) models[k] = models_[k];
    for (int b = 0; b < buffered_; ++b)
      for (int k = 0; k < kCount; ++k) {
        sums[k] += bin_cost(models[k], buffer_[b]);
        models[k].update(buffer_[b]);
      }
    for (int k = 0; k < kCount; ++k) {
      models_[k] = models[k];
      spent[k] = sums[k];
    }
  }

  // Models of equal shifts run into the same states sooner or later, and stay together. Four
  // pairs of shifts are left at the least.
  void join() {
    int place[kInitializationCount];  // where each model goes
    int kept = 0;
    for (int m = 0; m < leaders_; ++m) {
      place[m] = kept;
      for (int k = 0; k < kept; ++k)
        if (same(models_[k], models_[m])) place[m] = k;
      if (place[m] == kept) models_[kept++] = models_[m];
    }
    for (int& group : group_) group = place[group];
    leaders_ = kept;
  }

  static bool same(const ProbabilityModel& a, const ProbabilityModel& b) {
    return a.fast_state == b.fast_state && a.slow_state == b.slow_state &&
           a.fast_shift == b.fast_shift && a.slow_shift == b.slow_shift;
  }

  ProbabilityModel models_[kInitializationCount];  // the first leaders_ of them, all different
  int group_[kInitializationCount];                // which of them stands for an index
  int leaders_ = kInitializationCount;
  uint64_t cost_[kInitializationCount] = {};
  uint64_t settled_ = 0;
  uint8_t buffer_[kBuffer];
  int buffered_ = 0;
};

// A sink of bins that tries all indices on all contexts.
class InitializationSearch : public SimpleSink<InitializationSearch> {
 public:
  explicit InitializationSearch(const ContextLayout& layout) : trials_(layout.count()) {}

  void bin(int context, unsigned bin) { trials_[context].add(bin); }
  void bypass(uint32_t, int) {}
  void end_block_row(int) {
    for (ContextTrial& trial : trials_) trial.restart();
  }

  // Writes the index of each context that the bitstream carries one for, 0 elsewhere. What the
  // flags cost depends on the flags before: of several ways to decide, the cheapest is kept.
  void choose(const TensorSyntax& tensor, bool history_enabled, uint8_t* indices) {
    std::vector<int> contexts;
    for_each_indexed_context(tensor, history_enabled, [&](int context) { contexts.push_back(context); });
    std::vector<uint8_t> best(trials_.size(), 0);
    uint64_t best_cost = cost_of(contexts, best);
    for (const bool adaptive : {true, false}) {
      const std::vector<uint8_t> decided = decide(contexts, adaptive);
      const uint64_t cost = cost_of(contexts, decided);
      if (cost < best_cost) {
        best_cost = cost;
        best = decided;
      }
    }
    std::copy(best.begin(), best.end(), indices);
  }

 private:
  static constexpr uint64_t kIndexCost = 3 * kOneBit;

  // The cheapest index of each context, with the flag's cost as it has adapted or as it starts.
  std::vector<uint8_t> decide(const std::vector<int>& contexts, bool adaptive) {
    std::vector<uint8_t> indices(trials_.size(), 0);
    ProbabilityModel flag;
    flag.initialize(0);
    for (const int context : contexts) {
      ContextTrial& trial = trials_[context];
      uint64_t best = trial.cost(0) + bin_cost(flag, 0);
      for (int index = 1; index < kInitializationCount; ++index) {
        const uint64_t cost = trial.cost(index) + bin_cost(flag, 1) + kIndexCost;
        if (trial.cost(index) < trial.cost(0) && cost < best) {
          best = cost;
          indices[context] = static_cast<uint8_t>(index);
        }
      }
      if (adaptive) flag.update(indices[context] != 0);
    }
    return indices;
  }

  // Bins, flags and indices together.
  uint64_t cost_of(const std::vector<int>& contexts, const std::vector<uint8_t>& indices) {
    uint64_t cost = 0;
    ProbabilityModel flag;
    flag.initialize(0);
    for (const int context : contexts) {
      const int index = indices[context];
      cost += trials_[context].cost(index) + bin_cost(flag, index != 0) + (index ? kIndexCost : 0);
      flag.update(index != 0);
    }
    return cost;
  }

  std::vector<ContextTrial> trials_;
};

}  // namespace nnr
