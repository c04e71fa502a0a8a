// Quantization with error feedback: what an integer misses of a weight is made up for by the
// weights that are quantized later, in the metric of the layer's output (OPTQ, arXiv 2210.17323),
// and of the network's result (YAQA, arXiv 2505.22988). The survivors of dependent quantization's
// trellis carry the feedback of their own errors along the row. At its end the best one stays: its
// state runs on into the next row, and its errors go to all later rows.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "../decode/processor.h"
#include "dependent_search.h"
#include "survivors.h"

namespace nnr {

// How errors, in steps, count, and are fed back. An error e of column j adds -e * columns[j][i], of
// the row's group and the column's block, to each later column i of the block; one of row r adds
// -e * rows[r][s] to each later row s.
struct ErrorFeedback {
  const float* columns = nullptr;         // groups x blocks x block x block, above the diagonals
  const float* column_weights = nullptr;  // groups x cols, of squared errors
  uint64_t groups = 1;                    // of as many rows each
  uint64_t block = 1;                     // columns of a block, which divides their number
  const float* rows = nullptr;            // rows x rows, above the diagonal; or null: none
  const float* row_weights = nullptr;     // rows, of squared errors; or null: all 1
};

// `kDependent`: of dependent quantization, with eight survivors; else there is one. `kWide`: as of
// `pick`; the integers are the same.
template <bool kDependent, bool kWide>
class FeedbackTrellis {
 public:
  // `input`: scan order 0, without importance, parent and history. `levels`: elements() integers,
  // to be written. A row's targets are in their place until they are: with an array of their own,
  // large tensors would need a third more.
  FeedbackTrellis(const QuantizerInput& input, const ErrorFeedback& feedback, int32_t* levels)
      : input_(input), feedback_(feedback), rows_(input.syntax.rows), cols_(input.syntax.cols),
        block_(feedback.block), rates_(input.syntax, input.lambda),
        targets_(new (levels) float[rows_ * cols_]), target_(cols_), residuals_(block_),
        steps_(cols_), elements_(cols_) {
    refresh();
  }

  void run() {
    for (uint64_t i = 0; i < rows_ * cols_; ++i)
      targets_[i] = static_cast<float>(input_.scaled(i));
    for (uint64_t row = 0; row < rows_; ++row) {
      search(row);
      finish(row);
    }
  }

 private:
  typedef typename Survivors<kDependent>::Values Values;
  typedef typename Survivors<kDependent>::Levels Levels;
  static constexpr int kSurvivors = Survivors<kDependent>::kCount;
  static constexpr int kWaiting = 16;  // columns whose errors wait before they go to those behind
  static constexpr int kTabulated = 256;
  static constexpr float kLargest = 1 << 30;
  static constexpr float kUnreachable = std::numeric_limits<float>::infinity();

  struct Residual {
    Values values;
  };
  // What one column decides for the state that it leads to.
  struct Step {
    Levels level;
    std::array<uint8_t, kSurvivors> before;
  };

  void search(uint64_t row) {
    std::memcpy(target_.data(), targets_ + row * cols_, cols_ * sizeof(float));
    start_at(state_);
    const uint64_t group = row / (rows_ / feedback_.groups);
    weight_of_row_ = feedback_.row_weights ? feedback_.row_weights[row] : 1.0f;
    for (uint64_t start = 0; start < cols_; start += block_) {
      columns_ = feedback_.columns + (group * cols_ + start) * block_;
      column_weights_ = feedback_.column_weights + group * cols_ + start;
      search_block(target_.data() + start, steps_.data() + start);
    }
  }

  void start_at(int state) {
    if constexpr (kDependent) {
      cost_ = Lanes{} + kUnreachable;
      cost_[state] = 0;
      left_ = IntLanes{} + row_left_;
    } else {
      cost_ = 0;
      left_ = row_left_;
    }
  }

  // Columns of a block are counted from its first one.
  void search_block(const float* target, Step* steps) {
    for (uint64_t i = 0; i < block_; ++i) residuals_[i].values = Values{} + target[i];
    for (uint64_t first = 0; first < block_; first += kWaiting) {
      const int count = static_cast<int>(std::min<uint64_t>(kWaiting, block_ - first));
      start_window(first, count);
      for (int b = 0; b < count; ++b) step(first + b, b, steps[first + b]);
      feed_back(first, count);
    }
  }

  // Columns next to each other, whose errors go to each other.
  void start_window(uint64_t first, int count) {
    for (int t = 0; t < count; ++t)
      for (int b = t + 1; b < count; ++b)
        within_[b][t] = columns_[(first + t) * block_ + first + b];
    if constexpr (kDependent)
      for (int s = 0; s < kDqStates; ++s) origin_[s] = s;
  }

  // Decides column j, before which errors of b columns wait, for each survivor.
  void step(uint64_t j, int b, Step& made) {
    Values x = residuals_[j].values;
    if constexpr (kDependent) pick<kWide>(x, origin_);
    for (int t = 0; t < b; ++t) x -= errors_[t] * within_[b][t];
    // Errors that add up leave room for integers of 32 bits.
    x = x < -kLargest ? Values{} - kLargest : x;
    x = x > kLargest ? Values{} + kLargest : x;
    decide(x, b, column_weights_[j] * weight_of_row_, made);
  }

  // What each survivor can go on by: an integer of either parity, of parity 0 perhaps zero.
  struct Ways {
    Lanes cost[2];
    IntLanes magnitude[2], q[2];  // of the integer, and in steps
    IntLanes negative;            // -1 or 0: of both
  };

  void decide(const Lanes& x, int b, float weight, Step& made) {
    Ways ways;
    find_ways(x, weight, ways);
    follow_best(x, b, ways, made);
  }

  void find_ways(const Lanes& x, float weight, Ways& ways) const {
    ways.negative = x < 0;
    const Lanes size = x < 0 ? -x : x;
    const IntLanes base = __builtin_convertvector(size, IntLanes) - 1;
    for (int parity = 0; parity < 2; ++parity) {
      const int even = kResidue[0][parity], odd = kResidue[1][parity];
      const IntLanes residue = {even, odd, even, odd, even, odd, even, odd};
      IntLanes& q = ways.q[parity];
      q = base + ((residue - base) & 3);
      q += (q <= 0) & 4;
      ways.magnitude[parity] = (q + kQuantizer) >> 1;
    }
    Lanes zero, prices[2];
    price(ways, zero, prices);
    zero = cost_ + weight * size * size + zero;
    for (int parity = 0; parity < 2; ++parity) {
      const Lanes error = size - __builtin_convertvector(ways.q[parity], Lanes);
      ways.cost[parity] = cost_ + weight * error * error + prices[parity];
    }
    const IntLanes is_other = ways.cost[0] < zero;
    ways.cost[0] = ways.cost[0] < zero ? ways.cost[0] : zero;
    ways.q[0] &= is_other;
    ways.magnitude[0] &= is_other;
  }

  // Of the two ways into each state the better one survives, with what it has behind it.
  void follow_best(const Lanes& x, int b, const Ways& ways, Step& made) {
    IntLanes first, second;
    std::memcpy(&first, kWaysInto.first.data(), sizeof first);
    std::memcpy(&second, kWaysInto.second.data(), sizeof second);
    Lanes of_first = ways.cost[0], of_second = ways.cost[0];
    pick<kWide>(of_first, ways.cost[1], first);
    pick<kWide>(of_second, ways.cost[1], second);
    const IntLanes way = of_second < of_first ? second : first;
    const IntLanes before = way & (kDqStates - 1);
    cost_ = of_second < of_first ? of_second : of_first;

    IntLanes sign = ways.negative, level = ways.magnitude[0], q = ways.q[0];
    pick<kWide>(sign, before);
    pick<kWide>(level, ways.magnitude[1], way);
    pick<kWide>(q, ways.q[1], way);
    level = (level ^ sign) - sign;
    q = (q ^ sign) - sign;
    Lanes error = x;
    pick<kWide>(error, before);
    error -= __builtin_convertvector(q, Lanes);
    for (int t = 0; t < b; ++t) pick<kWide>(errors_[t], before);
    errors_[b] = cost_ == kUnreachable ? Lanes{} : error;
    pick<kWide>(origin_, before);
    left_ = ((level < 0) & 1) | ((level > 0) & 2);  // neighbour_class
    made.level = level;
    for (int s = 0; s < kDqStates; ++s) made.before[s] = static_cast<uint8_t>(before[s]);
  }

  // What integers cost: zero, and those of either parity.
  void price(const Ways& ways, Lanes& zero, Lanes (&prices)[2]) const {
    if (input_.lambda == 0) {
      zero = prices[0] = prices[1] = Lanes{};
      return;
    }
    for (int s = 0; s < kDqStates; ++s) {
      const int left = left_[s], is_negative = ways.negative[s] & 1;
      zero[s] = zero_[s][left];
      for (int parity = 0; parity < 2; ++parity)
        prices[parity][s] =
            nonzero_[s][left][is_negative] + rate_of(ways.magnitude[parity][s], is_negative);
    }
  }

  // One survivor: the integers around a weight, and zero.
  void decide(float x, int b, float weight, Step& made) {
    const bool negative = x < 0;
    const float size = std::fabs(x);
    const auto below = static_cast<int>(size);
    int best = 0;
    float least = cost_ + weight * size * size + zero_[0][left_];
    for (int magnitude = std::max(below, 1); magnitude <= below + 1; ++magnitude) {
      const float error = size - static_cast<float>(magnitude);
      const float price = nonzero_[0][left_][negative] + rate_of(magnitude, negative);
      const float cost = cost_ + weight * error * error + price;
      if (cost >= least) continue;
      least = cost;
      best = magnitude;
    }
    cost_ = least;
    made.level = negative ? -best : best;
    errors_[b] = x - static_cast<float>(made.level);
    left_ = neighbour_class(made.level);
  }

  // Lets the errors that wait count in all columns of the block behind theirs: in as many at a time
  // as fit the registers.
  void feed_back(uint64_t first, int count) {
    constexpr int kTogether = (kWide ? 8 : 4) * (kDependent ? 1 : kDqStates);
    uint64_t i = first + count;
    for (; i + kTogether <= block_; i += kTogether) feed_back_to<kTogether>(first, count, i);
    for (; i < block_; ++i) feed_back_to<1>(first, count, i);
  }

  template <int kTogether>
  void feed_back_to(uint64_t first, int count, uint64_t i) {
    Values sums[kTogether];
    for (int k = 0; k < kTogether; ++k) {
      sums[k] = residuals_[i + k].values;
      if constexpr (kDependent) pick<kWide>(sums[k], origin_);
    }
    const float* row = columns_ + first * block_ + i;
    for (int t = 0; t < count; ++t, row += block_)
      for (int k = 0; k < kTogether; ++k) sums[k] -= errors_[t] * row[k];
    for (int k = 0; k < kTogether; ++k) residuals_[i + k].values = sums[k];
  }

  // Writes the row on the best path, adapts the models to it, and gives its errors to later rows.
  void finish(uint64_t row) {
    if constexpr (kDependent)
      state_ = cheapest_state(kDqStates, [&](int s) { return cost_[s]; });
    auto* levels = new (targets_ + row * cols_) int32_t[cols_];
    const int start = trace_back(state_, levels);
    row_left_ = neighbour_class(levels[cols_ - 1]);
    if (input_.lambda > 0) {
      for (uint64_t j = 0; j < cols_; ++j) elements_[j] = row * cols_ + j;
      if (kDependent) rates_.start_at(start);
      rates_.adapt(levels, elements_.data(), cols_);
      rates_.refresh();
      refresh();
    }
    if (!feedback_.rows) return;
    for (uint64_t later = row + 1; later < rows_; ++later) {
      const float share = feedback_.rows[row * rows_ + later];
      float* other = targets_ + later * cols_;
      for (uint64_t j = 0; j < cols_; ++j) other[j] -= share * target_[j];
    }
  }

  // Writes the levels that lead to a state, and in place of the targets the errors; returns the
  // state before them.
  int trace_back(int state, int32_t* levels) {
    for (uint64_t j = cols_; j-- > 0;) {
      const Step& made = steps_[j];
      if constexpr (kDependent) {
        levels[j] = made.level[state];
        state = made.before[state];
        target_[j] -= static_cast<float>(reconstruction_index(levels[j], state));
      } else {
        levels[j] = made.level;
        target_[j] -= static_cast<float>(levels[j]);
      }
    }
    return state;
  }

  float rate_of(int magnitude, bool negative) const {
    if (input_.lambda == 0) return 0;
    if (magnitude < kTabulated) return static_cast<float>(rates_.table(negative)[magnitude]);
    return static_cast<float>(rates_.magnitude(static_cast<uint32_t>(magnitude), negative, 0));
  }

  void refresh() {
    for (int s = 0; s < kSurvivors; ++s)
      for (int left = 0; left < 3; ++left) {
        const int significance = ContextLayout::significance(s, left, 0, false);
        zero_[s][left] = static_cast<float>(rates_.bin(significance, 0));
        for (unsigned negative = 0; negative < 2; ++negative)
          nonzero_[s][left][negative] =
              static_cast<float>(rates_.bin(significance, 1) +
                                 rates_.bin(ContextLayout::sign(left, 0), negative));
      }
  }

  static constexpr IntLanes kQuantizer = {0, 1, 0, 1, 0, 1, 0, 1};  // of each state

  const QuantizerInput& input_;
  const ErrorFeedback& feedback_;
  uint64_t rows_, cols_, block_;
  AdaptiveRates rates_;
  float* targets_;  // in steps, with the feedback of earlier rows, of the rows to be searched
  std::vector<float> target_;  // of the row; then its errors
  std::vector<Residual> residuals_;  // of the block, with the feedback of errors that do not wait
  std::vector<Step> steps_;
  std::vector<uint64_t> elements_;
  Values errors_[kWaiting];            // of the columns that wait
  float within_[kWaiting][kWaiting];   // of them: the feedback of column t to column b at [b][t]
  IntLanes origin_ = {};               // whose residuals, before those wait, a survivor has
  Levels left_ = {};                   // class of its last integer
  Values cost_ = {};
  float zero_[kSurvivors][3], nonzero_[kSurvivors][3][2];
  const float* columns_ = nullptr;  // of the row's group, and the block
  const float* column_weights_ = nullptr;
  float weight_of_row_ = 1;
  int state_ = 0, row_left_ = 0;  // where the row before ended
};

template <bool kDependent>
void quantize_plainly(const QuantizerInput& input, const ErrorFeedback& feedback, int32_t* levels) {
  FeedbackTrellis<kDependent, false>(input, feedback, levels).run();
}

#if NNR_HAS_FAST_PATHS
template <bool kDependent>
__attribute__((target("avx2"), flatten)) void quantize_widely(const QuantizerInput& input,
                                                              const ErrorFeedback& feedback,
                                                              int32_t* levels) {
  FeedbackTrellis<kDependent, true>(input, feedback, levels).run();
}
#endif

inline void quantize_with_feedback(const QuantizerInput& input, const ErrorFeedback& feedback,
                                   int32_t* levels) {
  const bool is_dependent = input.syntax.dependent_quantization;
#if NNR_HAS_FAST_PATHS
  if (fast_paths_enabled && __builtin_cpu_supports("avx2")) {
    const auto quantize = is_dependent ? quantize_widely<true> : quantize_widely<false>;
    return quantize(input, feedback, levels);
  }
#endif
  const auto quantize = is_dependent ? quantize_plainly<true> : quantize_plainly<false>;
  quantize(input, feedback, levels);
}

}  // namespace nnr
