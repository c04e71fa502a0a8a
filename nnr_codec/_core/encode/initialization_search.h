// Finds the initialization index of every context: codes its bins once per index and takes the
// cheapest (spec/bitstream.md, "Encoder notes").
#pragma once

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
    for (int i = 0; i < kInitializationCount; ++i) {
      models_[i].initialize(i);
      leader_[i] = i;
    }
  }

  // Cost of the bins so far under index `index`, in 1/4096 bit.
  uint64_t cost(int index) {
    settle();
    return cost_[index];
  }

 private:
  static constexpr int kBuffer = 512;

  // Codes the buffered bins with every index whose model differs from those before it.
  void settle() {
    if (buffered_ == 0) return;
    uint64_t spent[kInitializationCount] = {};
    for (int i = 0; i < kInitializationCount; ++i) {
      if (leader_[i] != i) continue;
      ProbabilityModel model = models_[i];
      uint64_t sum = 0;
      for (int b = 0; b < buffered_; ++b) {
        sum += bin_cost(model, buffer_[b]);
        model.update(buffer_[b]);
      }
      models_[i] = model;
      spent[i] = sum;
    }
    for (int i = 0; i < kInitializationCount; ++i) cost_[i] += spent[leader_[i]];
    buffered_ = 0;
    join();
  }

  // Indices of equal shifts run into the same states sooner or later, and stay together.
  void join() {
    for (int i = 1; i < kInitializationCount; ++i) {
      for (int j = 0; j < i && leader_[i] == i; ++j)
        if (leader_[j] == j && same(models_[i], models_[j])) leader_[i] = j;
      leader_[i] = leader_[leader_[i]];
    }
  }

  static bool same(const ProbabilityModel& a, const ProbabilityModel& b) {
    return a.fast_state == b.fast_state && a.slow_state == b.slow_state &&
           a.fast_shift == b.fast_shift && a.slow_shift == b.slow_shift;
  }

  ProbabilityModel models_[kInitializationCount];
  int leader_[kInitializationCount];  // the first index that has the same model
  uint64_t cost_[kInitializationCount] = {};
  uint8_t buffer_[kBuffer];
  int buffered_ = 0;
};

// A sink of bins that tries all indices on all contexts.
class InitializationSearch {
 public:
  explicit InitializationSearch(const ContextLayout& layout) : trials_(layout.count()) {}

  void bin(int context, unsigned bin) { trials_[context].add(bin); }
  void bypass(uint32_t, int) {}
  void end_block_row(int) {
    for (ContextTrial& trial : trials_) trial.restart();
  }

  // Writes the cheapest index of each context that the bitstream carries one for, 0 elsewhere.
  void choose(const TensorSyntax& tensor, bool history_enabled, uint8_t* indices) {
    for (size_t i = 0; i < trials_.size(); ++i) indices[i] = 0;
    ProbabilityModel flag;
    flag.initialize(0);
    for_each_indexed_context(tensor, history_enabled, [&](int context) {
      const uint64_t with_index = bin_cost(flag, 1) + 3 * kOneBit;
      uint64_t best = trials_[context].cost(0) + bin_cost(flag, 0);
      for (int index = 1; index < kInitializationCount; ++index) {
        const uint64_t cost = trials_[context].cost(index) + with_index;
        if (cost < best) {
          best = cost;
          indices[context] = static_cast<uint8_t>(index);
        }
      }
      flag.update(indices[context] != 0);
    });
  }

 private:
  std::vector<ContextTrial> trials_;
};

}  // namespace nnr
