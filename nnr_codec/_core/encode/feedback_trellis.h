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

#include "dependent_search.h"

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

class FeedbackTrellis {
 public:
  // `input`: scan order 0, without importance, parent and history. `levels`: elements() integers,
  // to be written. A row's targets are in their place until they are: with an array of their own,
  // large tensors would need a third more.
  FeedbackTrellis(const QuantizerInput& input, const ErrorFeedback& feedback, int32_t* levels)
      : input_(input), feedback_(feedback), rows_(input.syntax.rows),
        cols_(input.syntax.cols), block_(feedback.block), rates_(input.syntax, input.lambda),
        targets_(new (levels) float[rows_ * cols_]), target_(cols_), steps_(cols_),
        elements_(cols_) {
    for (auto& residuals : residuals_) residuals.resize(block_);
    for (auto& residuals : next_residuals_) residuals.resize(block_);
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
  static constexpr int kStates = kDqStates;
  static constexpr int kWaiting = 32;  // columns whose errors wait before they go to those behind
  static constexpr int kTabulated = 256;
  static constexpr float kLargest = 1 << 30;
  static constexpr float kUnreachable = std::numeric_limits<float>::infinity();

  typedef float Lanes __attribute__((vector_size(4 * kStates)));  // a value for each survivor

  // What one column decides for the state that it leads to.
  struct Decision {
    int32_t level;
    float q;  // in steps, with its sign
    uint8_t before;
  };
  struct Step {
    Decision into[kStates];
  };

  bool is_dependent() const { return input_.syntax.dependent_quantization; }

  void search(uint64_t row) {
    std::memcpy(target_.data(), targets_ + row * cols_, cols_ * sizeof(float));
    for (auto& cost : cost_) cost = kUnreachable;
    cost_[state_] = 0;
    for (auto& left : left_) left = row_left_;
    const uint64_t group = row / (rows_ / feedback_.groups);
    weight_of_row_ = feedback_.row_weights ? feedback_.row_weights[row] : 1.0f;
    for (uint64_t start = 0; start < cols_; start += block_) {
      columns_ = feedback_.columns + (group * cols_ + start) * block_;
      column_weights_ = feedback_.column_weights + group * cols_ + start;
      search_block(target_.data() + start, steps_.data() + start);
    }
  }

  // Columns of a block are counted from its first one.
  void search_block(const float* target, Step* steps) {
    for (int s = 0; s < kStates; ++s) {
      std::memcpy(residuals_[s].data(), target, block_ * sizeof(float));
      origin_[s] = s;
    }
    for (uint64_t first = 0; first < block_; first += kWaiting) {
      const uint64_t count = std::min<uint64_t>(kWaiting, block_ - first);
      for (uint64_t j = first; j < first + count; ++j)
        step(j, static_cast<int>(j - first), steps[j]);
      feed_back(first, count);
    }
  }

  // Decides column j, before which errors of b columns wait, for each survivor.
  void step(uint64_t j, int b, Step& made) {
    Lanes x;
    for (int s = 0; s < kStates; ++s) x[s] = residuals_[origin_[s]][j];
    const uint64_t first = j - b;
    for (int t = 0; t < b; ++t) x -= errors_[t] * columns_[(first + t) * block_ + j];
    // Errors that add up leave room for integers of 32 bits.
    for (int s = 0; s < kStates; ++s) x[s] = std::clamp(x[s], -kLargest, kLargest);
    const float weight = column_weights_[j] * weight_of_row_;

    float cost[kStates];
    for (auto& c : cost) c = kUnreachable;
    for (int s = 0; s < kStates; ++s) {
      if (cost_[s] == kUnreachable) continue;
      if (is_dependent())
        extend_dependent(s, x[s], weight, made, cost);
      else
        extend_uniform(x[s], weight, made, cost);
    }
    Lanes error = {};
    std::array<int, kStates> origin{}, before{};
    std::array<int, kStates> left{};
    for (int s = 0; s < kStates; ++s) {
      before[s] = cost[s] == kUnreachable ? s : made.into[s].before;
      origin[s] = origin_[before[s]];
      if (cost[s] == kUnreachable) continue;
      error[s] = x[before[s]] - made.into[s].q;
      left[s] = neighbour_class(made.into[s].level);
    }
    for (int t = 0; t < b; ++t) {
      Lanes moved;
      for (int s = 0; s < kStates; ++s) moved[s] = errors_[t][before[s]];
      errors_[t] = moved;
    }
    errors_[b] = error;
    origin_ = origin;
    left_ = left;
    std::memcpy(cost_, cost, sizeof cost);
  }

  void extend_dependent(int s, float x, float weight, Step& made, float* cost) {
    const bool negative = x < 0;
    const float size = std::fabs(x);
    const int quantizer = s & 1;
    const int left = left_[s];
    const float behind = cost_[s];
    offer(s, 0, 0, behind + weight * size * size + zero_[s][left], 0.0f, made, cost);
    const int base = static_cast<int>(size) - 1;
    for (int parity = 0; parity < 2; ++parity) {
      int q = base + ((kResidue[quantizer][parity] - base) & 3);
      if (q <= 0) q += 4;
      const int magnitude = (q + quantizer) >> 1;
      const float error = size - static_cast<float>(q);
      const float price = nonzero_[s][left][negative] + rate_of(magnitude, negative);
      offer(s, parity, negative ? -magnitude : magnitude,
            behind + weight * error * error + price, static_cast<float>(negative ? -q : q), made,
            cost);
    }
  }

  // One survivor, in state 0: the integers around a weight, and zero.
  void extend_uniform(float x, float weight, Step& made, float* cost) {
    const bool negative = x < 0;
    const float size = std::fabs(x);
    const int left = left_[0];
    const float behind = cost_[0];
    const auto below = static_cast<int>(size);
    offer(0, 0, 0, behind + weight * size * size + zero_[0][left], 0.0f, made, cost);
    for (int magnitude = std::max(below, 1); magnitude <= below + 1; ++magnitude) {
      const float error = size - static_cast<float>(magnitude);
      const float price = nonzero_[0][left][negative] + rate_of(magnitude, negative);
      const int level = negative ? -magnitude : magnitude;
      offer(0, 0, level, behind + weight * error * error + price, static_cast<float>(level), made,
            cost);
    }
  }

  void offer(int s, int parity, int level, float price, float q, Step& made, float* cost) {
    const int next = is_dependent() ? kNextState[s][parity] : 0;
    if (price >= cost[next]) return;
    cost[next] = price;
    made.into[next] = {level, q, static_cast<uint8_t>(s)};
  }

  // Lets the errors that wait count in all columns of the block behind theirs.
  void feed_back(uint64_t first, uint64_t count) {
    const uint64_t begin = first + count;
    for (int s = 0; s < kStates; ++s) {
      if (cost_[s] == kUnreachable) continue;
      const float* from = residuals_[origin_[s]].data();
      float* to = next_residuals_[s].data();
      std::memcpy(to + begin, from + begin, (block_ - begin) * sizeof(float));
    }
    // A strip at a time, which stays in the cache with its part of the matrix.
    constexpr uint64_t kStrip = 256;
    for (uint64_t strip = begin; strip < block_; strip += kStrip) {
      const uint64_t end = std::min(strip + kStrip, block_);
      for (int s = 0; s < kStates; ++s) {
        if (cost_[s] == kUnreachable) continue;
        float* to = next_residuals_[s].data();
        for (uint64_t t = 0; t < count; ++t) {
          const float error = errors_[t][s];
          const float* row = columns_ + (first + t) * block_;
          for (uint64_t i = strip; i < end; ++i) to[i] -= error * row[i];
        }
      }
    }
    std::swap(residuals_, next_residuals_);
    for (int s = 0; s < kStates; ++s) origin_[s] = s;
  }

  // Writes the row on the best path, adapts the models to it, and gives its errors to later rows.
  void finish(uint64_t row) {
    int state = cheapest_state(kStates, [&](int s) { return cost_[s]; });
    state_ = state;
    auto* levels = new (targets_ + row * cols_) int32_t[cols_];
    const int start = trace_back(state, levels);
    row_left_ = neighbour_class(levels[cols_ - 1]);
    if (input_.lambda > 0) {
      for (uint64_t j = 0; j < cols_; ++j) elements_[j] = row * cols_ + j;
      if (is_dependent()) rates_.start_at(start);
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
      const Decision& made = steps_[j].into[state];
      levels[j] = made.level;
      target_[j] -= made.q;
      state = made.before;
    }
    return state;
  }

  float rate_of(int magnitude, bool negative) const {
    if (input_.lambda == 0) return 0;
    if (magnitude < kTabulated) return static_cast<float>(rates_.table(negative)[magnitude]);
    return static_cast<float>(rates_.magnitude(static_cast<uint32_t>(magnitude), negative, 0));
  }

  void refresh() {
    for (int s = 0; s < kStates; ++s)
      for (int left = 0; left < 3; ++left) {
        const int significance = ContextLayout::significance(s, left, 0, false);
        zero_[s][left] = static_cast<float>(rates_.bin(significance, 0));
        for (unsigned negative = 0; negative < 2; ++negative)
          nonzero_[s][left][negative] =
              static_cast<float>(rates_.bin(significance, 1) +
                                 rates_.bin(ContextLayout::sign(left, 0), negative));
      }
  }

  const QuantizerInput& input_;
  const ErrorFeedback& feedback_;
  uint64_t rows_, cols_, block_;
  AdaptiveRates rates_;
  float* targets_;  // in steps, with the feedback of earlier rows, of the rows to be searched
  std::vector<float> target_;  // of the row; then its errors
  std::vector<float> residuals_[kStates], next_residuals_[kStates];
  std::vector<Step> steps_;
  std::vector<uint64_t> elements_;
  Lanes errors_[kWaiting];              // of the columns that wait
  std::array<int, kStates> origin_{};   // whose residuals, before those wait, a survivor has
  std::array<int, kStates> left_{};     // class of its last integer
  float cost_[kStates];
  float zero_[kStates][3], nonzero_[kStates][3][2];
  const float* columns_ = nullptr;  // of the row's group, and the block
  const float* column_weights_ = nullptr;
  float weight_of_row_ = 1;
  int state_ = 0, row_left_ = 0;  // where the row before ended
};

inline void quantize_with_feedback(const QuantizerInput& input, const ErrorFeedback& feedback,
                                   int32_t* levels) {
  FeedbackTrellis(input, feedback, levels).run();
}

}  // namespace nnr
