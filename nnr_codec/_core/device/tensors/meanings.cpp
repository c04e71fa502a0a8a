// What the model map makes of integers (spec/model_map.md, "What integers mean").
#include "values.h"

#if NNR_WITH_MAP

namespace nnr::device {

bool Values::start_part(const UnitTensor& tensor, const DataUnit& unit, StoredTensor* part,
                        Failure& failure) {
  if (!rule_ || !rule_->part) return true;
  if (!part) return failure.invalid("a part does not come before what it is a part of");
  if (part->type != NNR_INT32) return failure.invalid("a part is not of 32-bit integers");
  part_ = static_cast<const int32_t*>(part->data);
  part_size_ = part->shape.elements();
  bool has_shape = part->shape.count == 1;
  if (rule_->meaning == Meaning::kHalves || rule_->meaning == Meaning::kMantissas) {
    has_shape = part->shape.count == unit.dimension_count;
    for (uint32_t i = 0; has_shape && i < unit.dimension_count; ++i)
      has_shape = part->shape.dimensions[i] == unit.dimensions[i];
  }
  const bool is_table = rule_->meaning == Meaning::kTable;
  if (!has_shape || (is_table && part_size_ > 65536))
    return failure.invalid("a part has another shape");
  if (rule_->meaning == Meaning::kGroups) return check_scales(tensor.elements(), failure);
  if (is_table) {  // from differences to words
    uint32_t sum = 0;
    int32_t* words = static_cast<int32_t*>(part->data);
    for (uint64_t i = 0; i < part_size_; ++i)
      words[i] = static_cast<int32_t>(sum += static_cast<uint32_t>(words[i]));
  }
  return true;
}

bool Values::check_scales(uint64_t elements, Failure& failure) const {
  const uint64_t run = static_cast<uint64_t>(rule_->run);
  if (run > elements / part_size_ || elements % (run * part_size_))
    return failure.invalid("scales of groups do not fit the tensor");
  for (uint64_t i = 0; i < part_size_; ++i) {
    const double scale = scale_of(i);
    const float least = bits_cast<float>(uint32_t{0x800000});  // 2^-126
    if (!(scale >= static_cast<double>(least) && is_finite(static_cast<float>(scale))))
      return failure.invalid("a scale of a group is out of range");
  }
  return true;
}

double Values::scale_of(uint64_t group) const {
  uint32_t word = static_cast<uint32_t>(part_[0]);
  if (group) word += static_cast<uint32_t>(part_[group]);
  const float scale = rule_->scale_type == NNR_FLOAT16
                          ? widened(word & 0xffff, type_info(NNR_FLOAT16))
                          : bits_cast<float>(word);
  return static_cast<double>(scale);
}

bool Values::convert_meaning(const int32_t* integers, uint64_t index, uint8_t* to) const {
  const TypeInfo& info = type_info(type_);
  const int64_t integer = integers[0];
  const unsigned bits = 8u * info.size;
  uint64_t word = 0;
  switch (rule_->meaning) {
    case Meaning::kGrid: return convert_scaled(integers[0], rule_->scale, to);
    case Meaning::kGroups: {
      const uint64_t group = index / static_cast<uint64_t>(rule_->run) % part_size_;
      return convert_scaled(integers[0], scale_of(group), to);
    }
    case Meaning::kTable: {
      const int64_t size = static_cast<int64_t>(part_size_);
      if (integer < -size || integer >= size) return false;
      word = static_cast<uint32_t>(part_[integer < 0 ? integer + size : integer]);
      break;
    }
    case Meaning::kBits:
      if (!word_of(integer, bits, is_signed_float(type_), word)) return false;
      break;
    case Meaning::kHalves:
      word = static_cast<uint32_t>(integer);
      if (rule_->has_bits && !word_of(integer, 32, is_signed_float(type_), word)) return false;
      word = word << 32 | static_cast<uint32_t>(part_[index]);
      break;
    case Meaning::kMantissas:
      if (!word_of_mantissa(integer, part_[index], word)) return false;
      break;
    default:
      if (!word_of_fields(integers, word)) return false;
  }
  store_word(to, word, info.size);
  return true;
}

// The word of an exponent and a signed mantissa.
bool Values::word_of_mantissa(int64_t integer, int64_t mantissa, uint64_t& word) const {
  const TypeInfo& info = type_info(type_);
  const int64_t exponent = integer + rule_->bits;
  if (exponent < 0 || exponent >> info.exponent_bits) return false;
  if (!fits_signed(mantissa, info.mantissa_bits + 1u)) return false;
  word = static_cast<uint64_t>(exponent) << info.mantissa_bits;
  word |= static_cast<uint64_t>(mantissa < 0 ? -1 - mantissa : mantissa);
  word |= static_cast<uint64_t>(mantissa < 0 ? 1 : 0) << (8 * info.size - 1);
  return true;
}

// The word that fields make, the first one its least significant bits.
bool Values::word_of_fields(const int32_t* integers, uint64_t& word) const {
  const unsigned bits = static_cast<unsigned>(rule_->field_bits);
  for (unsigned i = 0; i < 8u * type_info(type_).size / bits; ++i) {
    if (!fits_signed(integers[i], bits)) return false;
    word |= static_cast<uint64_t>(integers[i] + (1 << (bits - 1))) << (i * bits);
  }
  return true;
}

bool Values::convert_scaled(int32_t integer, double scale, uint8_t* to) const {
  double product = static_cast<double>(integer) * scale;
  const bool is_negative_zero = rule_->has_negative_zero && integer == rule_->negative_zero;
  if (is_negative_zero) product = -0.0;
  if (type_ == NNR_FLOAT64) {
    std::memcpy(to, &product, sizeof product);
    return true;  // of 32-bit integers and such scales all are finite
  }
  const float value = static_cast<float>(product);
  store_float(to, value, type_);
  const TypeInfo& info = type_info(type_);
  if (type_ == NNR_FLOAT32) return is_finite(value);
  return is_finite_narrow(static_cast<uint32_t>(load_word(to, info.size)), info);
}

bool Values::word_of(int64_t integer, unsigned bits, bool is_rotated, uint64_t& word) const {
  if (!fits_signed(integer, bits)) return false;
  const uint64_t all = (uint64_t{1} << bits) - 1, bias = static_cast<uint64_t>(rule_->bits);
  word = (static_cast<uint64_t>(integer) + bias) & all;
  if (!is_rotated) return true;
  word = word == 0 ? bias : word == bias ? 0 : word;
  word = word >> 1 | (word & 1) << (bits - 1);
  return true;
}

}  // namespace nnr::device

#endif
