// Turns the integers of a tensor, as they are coded, into its elements.
#pragma once

#include "../headers/data_unit.h"
#include "../map/named_tensor.h"
#include "../support/config.h"
#include "../support/failure.h"

namespace nnr::device {

// Whether a number fits so many bits, its sign included.
inline bool fits_signed(int64_t value, unsigned bits) {
  return value >= -(int64_t{1} << (bits - 1)) && value < int64_t{1} << (bits - 1);
}

class Values {
 public:
  // Begins a coded tensor of the unit. `rule` and `part`: what the model map says of it, and the
  // second tensor that it is made of; null without.
  bool start(const DataUnit& unit, const UnitTensor& tensor, const Rule* rule, StoredTensor* part,
             Failure& failure);
  // Begins a product of factors of a decomposed block.
  bool start_product(const DataUnit& unit, const Rule* rule, Failure& failure);
  // Begins the product of factors that the model map names.
  void start_weight(nnr_type type);
  // The same values as binary32 numbers, as they go into the product of a block's factors.
  Values as_factor() const;
  // Sets the step of quantized integers; the parameter is `qp` of density `density`.
  bool set_step(int64_t qp, unsigned density, Failure& failure);

  nnr_type type() const { return type_; }
  // The step of all integers; 0 if they have none.
  float step() const { return is_quantized_ && !has_meaning() ? step_ : 0.0f; }
  uint64_t integers_per_value() const {
    return NNR_WITH_MAP && rule_ ? rule_->integers_per_value() : 1;
  }
  // Whether the elements are 32-bit floats, each an integer times the step.
  bool is_plain() const { return is_quantized_ && !codebook_ && type_ == NNR_FLOAT32; }
  bool is_raw() const { return is_raw_; }

  // Integers that are indices become the codebook's values.
  bool look_up(int32_t* integers, size_t count, Failure& failure) const;
  // Converts integers (of raw floats their bits) to `count` elements of type(), the first of which
  // is element `first`.
  bool convert(const int32_t* integers, uint64_t first, size_t count, void* elements,
               Failure& failure) const;
  // Converts one number of a product.
  void convert_number(float number, void* element) const;

 private:
  bool start_rule(const Rule* rule, uint64_t coded, bool is_whole, Failure& failure);
  bool start_part(const UnitTensor& tensor, const DataUnit& unit, StoredTensor* part,
                  Failure& failure);
  bool check_scales(uint64_t elements, Failure& failure) const;
  bool has_meaning() const { return NNR_WITH_MAP && rule_ && rule_->meaning != Meaning::kNone; }
  double scale_of(uint64_t group) const;
  bool convert_floats(const int32_t* integers, size_t count, uint8_t* to, Failure& failure) const;
  float times_step(int32_t integer) const;
  bool convert_whole(const int32_t* integers, size_t count, uint8_t* to, Failure& failure) const;
  bool convert_meaning(const int32_t* integers, uint64_t index, uint8_t* to) const;
  bool convert_scaled(int32_t integer, double scale, uint8_t* to) const;
  bool word_of(int64_t integer, unsigned bits, bool is_rotated, uint64_t& word) const;
  bool word_of_mantissa(int64_t integer, int64_t mantissa, uint64_t& word) const;
  bool word_of_fields(const int32_t* integers, uint64_t& word) const;

  nnr_type natural_ = NNR_INT32;  // of the unit's header
  unsigned natural_bits_ = 32;    // of its integers
  nnr_type type_ = NNR_INT32;
  bool is_quantized_ = false, is_raw_ = false;
  float step_ = 0;
  const Codebook* codebook_ = nullptr;
  const Rule* rule_ = nullptr;
  const int32_t* part_ = nullptr;
  uint64_t part_size_ = 0;
};

}  // namespace nnr::device
