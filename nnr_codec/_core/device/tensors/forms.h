// Factored weights: which factors fit them, and their products.
#pragma once

#include "../map/named_tensor.h"
#include "../support/config.h"
#include "../support/failure.h"

namespace nnr::device {

// Whether the factors, whose shapes are known, have the shapes that the form has for the weight;
// the multiplications of the product.
bool check_factors(const Weight& weight, uint64_t& operations, Failure& failure);

// The elements of a product, one after the other. Each product and each sum is rounded to binary64,
// sums in ascending order of their index.
class Product {
 public:
  explicit Product(const nnr_memory& memory) : parts_(memory), row_(memory) {}

  // Begins the product of two matrices of binary32 numbers.
  void start(const StoredTensor& g, const StoredTensor& h);
  // Begins a factored weight, all factors of which are stored.
  bool start(const Weight& weight, Failure& failure);

  // Element `index` in row-major order, rounded to binary32.
  float element(uint64_t index);

 private:
  // Numbers `step` elements apart.
  struct Line {
    const StoredTensor* factor;
    uint64_t first, step;
    double at(uint64_t i) const;
  };
  static double dot(const Line& left, const Line& right, uint64_t count);
  static double dot(const Line& left, const double* right, uint64_t step, uint64_t count);

  double cp_element(const uint64_t (&place)[4]) const;
  double joint_element(const uint64_t (&place)[4]) const;
  double row_element(const uint64_t (&place)[4]) const;
  void form_row(uint64_t t);
  void form_parts();

  Form form_ = Form::kLowRank;
  int factor_count_ = 2;
  const StoredTensor* factors_[kMaxFactors] = {};
  uint64_t shape_[4] = {1, 1, 1, 1};
  uint64_t cols_ = 1;    // of a matrix
  Array<double> parts_;  // of ht2: sums over the inputs' rank
  Array<double> row_;    // of tucker2 and ht2: sums that one output needs
  uint64_t row_formed_ = UINT64_MAX;
};

}  // namespace nnr::device
