// Finds the initialization index of every context: codes its bins once per index and takes the
// cheapest. Of long runs of bins it looks at samples.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
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
    if (buffered_ == kBuffer) code_buffer();
  }

  // All models start anew, as at a block row's end.
  void restart() {
    code_buffer();
    leaders_ = kInitializationCount;
    for (int i = 0; i < kInitializationCount; ++i) {
      models_[i].initialize(i);
      group_[i] = i;
    }
  }

  // The bins from here on stand for `weight` times as many.
  void weigh(uint64_t weight) {
    code_buffer();
    weight_ = weight;
  }

  // Cost of the bins so far under index `index`, in 1/4096 bit.
  uint64_t cost(int index) {
    code_buffer();
    return cost_[index];
  }

 private:
  static constexpr int kBuffer = 128;   // bins
  static constexpr int64_t kSame = 96;   // of 4096; a step of the range table is 128

  // Codes the buffered bins with every model that differs.
  void code_buffer() {
    if (buffered_ == 0) return;
    uint64_t spent[kInitializationCount];
    switch (leaders_) {
      case 4: run_shift_pairs(spent); break;  // the usual case
      case 5: run<5>(spent); break;
      case 6: run<6>(spent); break;
      case 7: run<7>(spent); break;
      case 8: run<8>(spent); break;
      default: run<9>(spent);
    }
    for (int i = 0; i < kInitializationCount; ++i) cost_[i] += weight_ * spent[group_[i]];
    join();
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

  // The same with one model for each pair of shifts, which are constants here.
  void run_shift_pairs(uint64_t* spent) {
    run_two<0>(spent);
    run_two<2>(spent);
  }

  template <unsigned kFirst>
  void run_two(uint64_t* spent) {
    ProbabilityModel a = models_[kFirst];
    ProbabilityModel b = models_[kFirst + 1];
    uint64_t sums[2] = {};
    for (int i = 0; i < buffered_; ++i) {
      const unsigned bin = buffer_[i];
      sums[0] += bin_cost(a, bin);
      sums[1] += bin_cost(b, bin);
      a.update(bin, kFirst);
      b.update(bin, kFirst + 1);
    }
    models_[kFirst] = a;
    models_[kFirst + 1] = b;
    spent[kFirst] = sums[0];
    spent[kFirst + 1] = sums[1];
  }

  // Models of equal shifts run into the same states sooner or later, and stay together. The four
  // pairs of shifts are left at the least, in the order of their first indices.
  void join() {
    int leader[kInitializationCount];  // where each model goes
    int kept = 0;
    for (int m = 0; m < leaders_; ++m) {
      leader[m] = kept;
      for (int k = 0; k < kept; ++k)
        if (same(models_[k], models_[m])) leader[m] = k;
      if (leader[m] == kept) models_[kept++] = models_[m];
    }
    for (int& group : group_) group = leader[group];
    leaders_ = kept;
  }

  // Whether two models hardly differ any more. Rounding can keep them apart for ever.
  static bool same(const ProbabilityModel& a, const ProbabilityModel& b) {
    return a.shift_pair == b.shift_pair && std::abs(a.combined() - b.combined()) <= kSame;
  }

  ProbabilityModel models_[kInitializationCount];  // the first leaders_ of them, all different
  int group_[kInitializationCount];                // which of them stands for an index
  int leaders_ = kInitializationCount;
  uint64_t cost_[kInitializationCount] = {};
  uint64_t weight_ = 1;
  uint8_t buffer_[kBuffer];
  int buffered_ = 0;
};

// A sink of bins that tries all indices on all contexts.
class InitializationSearch {
 public:
  static constexpr bool kWantsBypass = false;

  explicit InitializationSearch(const ContextLayout& layout) : trials_(layout.count()) {}

  // After kDense runs of integers every second one is enough, after twice as many every fourth,
  // and so on: the choice hardly changes, and long tensors cost little more than short ones.
  bool wants(size_t integers) {
    const uint64_t number = seen_ / kRun;
    seen_ += integers;
    const uint64_t stride =
        number < kDense ? 1 : std::min(std::bit_floor(number / kDense) * 2, kSparsest);
    if (number % stride != 0) return false;
    if (stride != stride_)
      for (ContextTrial& trial : trials_) trial.weigh(stride);
    stride_ = stride;
    return true;
  }

  void receive(const ListedBin* first, const ListedBin* last) {
    for (; first != last; ++first) trials_[*first >> 1].add(*first & 1);
  }

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
  static constexpr uint64_t kRun = 256;   // integers
  static constexpr uint64_t kDense = 16;    // runs
  static constexpr uint64_t kSparsest = 16;

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
  uint64_t seen_ = 0;  // integers
  uint64_t stride_ = 1;
};

}  // namespace nnr
