// Rates of integers for the quantizers' searches: the coder's own models, adapted to what has
// been decided so far, tabulated and refreshed now and then.
#pragma once

#include <cstdint>
#include <vector>

#include "bin_cost.h"
#include "binarization.h"

namespace nnr {

// All rates are costs already weighted by lambda, in the unit of the distortion.
class AdaptiveRates {
 public:
  // `lambda`: cost of one bit.
  AdaptiveRates(const TensorSyntax& tensor, const TensorChoices& choices, double lambda)
      : tensor_(tensor), layout_{tensor.unary_length}, unit_(lambda / kOneBit),
        binarizer_(tensor, choices, sink_), bins_(layout_.count()) {
    sink_.contexts.start(layout_);
    for (auto& table : magnitude_) table.resize(tensor.unary_length + 2);
    refresh();
  }

  // Adapts the models to a decided integer; element i is the next in scan order.
  void adapt(int32_t level, uint64_t i) { binarizer_.put(level, i); }

  // The next integer is the one behind dq state `state`.
  void start_at(int state) { binarizer_.start_at(state); }

  void end_block_row() {
    sink_.contexts.reset();
    binarizer_.start_block_row();
    refresh();
  }

  // Tabulates the models' present rates.
  void refresh() {
    for (int context = 0; context < layout_.count(); ++context)
      for (unsigned bin = 0; bin < 2; ++bin)
        bins_[context].cost[bin] = unit_ * bin_cost(sink_.contexts.models[context].model, bin);
    for (int negative = 0; negative < 2; ++negative) {
      double ones = 0;
      for (int j = 0; j < tensor_.unary_length; ++j) {
        const double* cost = bins_[layout_.greater(j, negative != 0, 0)].cost;
        magnitude_[negative][j + 1] = ones + cost[0];
        ones += cost[1];
      }
      magnitude_[negative][tensor_.unary_length + 1] = ones;
    }
  }

  double bin(int context, unsigned value) const { return bins_[context].cost[value]; }

  // Tabulates `magnitude` without a parent: table[k] for k = 1 .. size - 1.
  void tabulate_magnitudes(bool negative, float* table, int size) const {
    const int n = tensor_.unary_length;
    for (int k = 1; k <= n && k < size; ++k) table[k] = static_cast<float>(magnitude_[negative][k]);
    int prefix = 0;
    for (int k = n + 1; k < size; ++prefix) {  // remainders of one prefix cost the same
      const double rate = magnitude(k, negative, 0);
      for (int end = k + (1 << prefix); k < end && k < size; ++k) table[k] = static_cast<float>(rate);
    }
  }

  // Rate of |k| >= 1, sign and significance apart, where the parent's integer is `parent`.
  double magnitude(int64_t magnitude, bool negative, int64_t parent) const {
    const int n = tensor_.unary_length;
    if (parent != 0) return magnitude_with_parent(magnitude, parent);
    if (magnitude <= n) return magnitude_[negative][magnitude];
    return magnitude_[negative][n + 1] + remainder(magnitude - (n + 1));
  }

 private:
  struct AdaptingSink {
    ContextSet contexts;
    void take(const ListedBin* first, const ListedBin* last) {
      for (; first != last; ++first)
        if (!is_bypass(*first)) contexts.models[*first >> 1].update(*first & 1);
    }
    void end_block_row(int) {}
  };
  struct BinRates {
    double cost[2];
  };

  double magnitude_with_parent(int64_t magnitude, int64_t parent) const {
    double sum = 0;
    for (int j = 0; j < tensor_.unary_length; ++j) {
      const double* cost = bins_[layout_.greater(j, false, parent)].cost;
      if (magnitude == j + 1) return sum + cost[0];
      sum += cost[1];
    }
    return sum + remainder(magnitude - (tensor_.unary_length + 1));
  }

  double remainder(int64_t remainder) const {
    double sum = 0;
    int k = 0;
    for (int64_t base = 0; k < kMaxRemainderPrefix; ++k) {
      const bool more = remainder >= base + (int64_t{1} << k);
      sum += bins_[layout_.remainder() + k].cost[more];
      if (!more) break;
      base += int64_t{1} << k;
    }
    return sum + unit_ * kOneBit * k;
  }

  const TensorSyntax& tensor_;
  ContextLayout layout_;
  double unit_;
  AdaptingSink sink_;
  Binarizer<AdaptingSink> binarizer_;
  std::vector<BinRates> bins_;
  std::vector<double> magnitude_[2];  // by |k| up to N; at N + 1 the greater-than bins alone
};

}  // namespace nnr
