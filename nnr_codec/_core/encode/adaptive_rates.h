// Rates of integers for the quantizers' searches: the coder's own models, adapted to what has
// been decided so far, tabulated and refreshed now and then.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "bin_cost.h"
#include "binarization.h"

namespace nnr {

// All rates are costs already weighted by lambda, in the unit of the distortion.
class AdaptiveRates {
 public:
  // `lambda`: cost of one bit.
  AdaptiveRates(const TensorSyntax& tensor, double lambda)
      : tensor_(tensor), choices_{tensor.history != nullptr, nullptr},
        layout_{tensor.unary_length}, unit_(lambda / kOneBit), sink_(layout_.count()),
        binarizer_(tensor_, choices_, sink_), bins_(layout_.count()) {
    for_each_indexed_context(tensor_, choices_.history_enabled,
                             [&](int context) { contexts_.push_back(context); });
    for (auto& rates : magnitude_) rates.resize(tensor.unary_length + 2 + kMaxRemainderPrefix);
    refresh();
  }
  AdaptiveRates(const AdaptiveRates&) = delete;
  AdaptiveRates& operator=(const AdaptiveRates&) = delete;

  // Adapts the models to integers that come next in scan order: levels[t] is that of element
  // elements[t].
  void adapt(const int32_t* levels, const uint64_t* elements, uint64_t count) {
    binarizer_.put(levels, elements, count);
  }

  // The next integer is the one behind dq state `state`.
  void start_at(int state) { binarizer_.start_at(state); }

  void end_block_row() {
    sink_.reset();
    binarizer_.start_block_row();
    refresh();
  }

  // Tabulates the models' present rates.
  void refresh() {
    for (const int context : contexts_)
      for (unsigned bin = 0; bin < 2; ++bin)
        bins_[context].cost[bin] = unit_ * bin_cost(sink_.models[context], bin);
    double prefix = 0;
    for (int k = 0; k < kMaxRemainderPrefix; ++k) {
      const double* cost = bins_[layout_.remainder() + k].cost;
      remainder_[k] = prefix + cost[0] + unit_ * kOneBit * k;
      prefix += cost[1];
    }
    remainder_[kMaxRemainderPrefix] = prefix + unit_ * kOneBit * kMaxRemainderPrefix;
    for (const bool negative : {false, true}) refresh_magnitudes(negative);
  }

  static constexpr int kTabulated = 256;
  // The rates of magnitudes less than kTabulated without a parent.
  const double* table(bool negative) const { return table_[negative]; }

  double bin(int context, unsigned value) const { return bins_[context].cost[value]; }

  // Rate of a magnitude (of 0: infinite), sign and significance apart, where the parent's integer
  // is `parent`.
  double magnitude(uint32_t magnitude, bool negative, int64_t parent) const {
    if (parent != 0) return magnitude_with_parent(magnitude, parent);
    return magnitude_[negative][class_of(magnitude)];
  }

 private:
  // Models that start from index 0, and adapt.
  struct AdaptingSink {
    static constexpr bool kWantsBypass = false;
    static constexpr unsigned kShiftPair = kInitialization[0].shift_pair;
    struct alignas(8) Model : ProbabilityModel {};  // a size that addresses can scale with
    std::vector<Model> models;

    explicit AdaptingSink(int count) : models(count) { reset(); }
    void reset() {
      for (Model& model : models) model.initialize(0);
    }
    void receive(const ListedBin* first, const ListedBin* last) {
      Model* const all = models.data();
      for (; first != last; ++first) all[*first >> 1].update(*first & 1, kShiftPair);
    }
  };

  void refresh_magnitudes(bool negative) {
    const int n = tensor_.unary_length;
    double* rates = magnitude_[negative].data();
    rates[0] = std::numeric_limits<double>::infinity();
    double ones = 0;
    for (int j = 0; j < n; ++j) {
      const double* cost = bins_[layout_.greater(j, negative, 0)].cost;
      rates[j + 1] = ones + cost[0];
      ones += cost[1];
    }
    for (int k = 0; k <= kMaxRemainderPrefix; ++k) rates[n + 1 + k] = ones + remainder_[k];
    double* const end = table_[negative] + kTabulated;
    double* next = std::copy_n(rates, std::min(n + 1, kTabulated), table_[negative]);
    for (int k = 0; next < end; ++k)
      next = std::fill_n(next, std::min(end - next, std::ptrdiff_t{1} << k), rates[n + 1 + k]);
  }

  // Index into magnitude_, without branches: magnitudes are hard to predict.
  uint32_t class_of(uint32_t magnitude) const {
    const uint32_t ones = std::min(magnitude, static_cast<uint32_t>(tensor_.unary_length));
    return ones + static_cast<uint32_t>(std::bit_width(2 * (magnitude - ones) + 1)) - 1;
  }
  struct BinRates {
    double cost[2];
  };

  double magnitude_with_parent(uint32_t magnitude, int64_t parent) const {
    const uint32_t n = static_cast<uint32_t>(tensor_.unary_length);
    double sum = magnitude == 0 ? magnitude_[0][0] : 0;
    for (uint32_t j = 0; j < n; ++j) {
      const double* cost = bins_[layout_.greater(static_cast<int>(j), false, parent)].cost;
      if (magnitude == j + 1) return sum + cost[0];
      sum += cost[1];
    }
    return sum + remainder_[std::bit_width(magnitude - n) - 1];
  }

  const TensorSyntax& tensor_;
  const TensorChoices choices_;
  ContextLayout layout_;
  double unit_;
  AdaptingSink sink_;
  Binarizer<AdaptingSink> binarizer_;
  std::vector<int> contexts_;  // those that the tensor uses
  std::vector<BinRates> bins_;
  double remainder_[kMaxRemainderPrefix + 1];  // by prefix
  // By sign, and |k| up to N, then N + 1 + prefix: remainders of one prefix cost the same.
  std::vector<double> magnitude_[2];
  double table_[2][kTabulated];
};

}  // namespace nnr
