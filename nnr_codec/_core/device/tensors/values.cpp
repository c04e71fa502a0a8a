#include "values.h"

namespace nnr::device {

namespace {

struct Format {
  nnr_type type;
  unsigned bits;
};
// By nnr_decompressed_data_format.
constexpr Format kFormats[] = {{NNR_INT32, 32}, {NNR_FLOAT32, 32}, {NNR_INT8, 2},  {NNR_INT8, 3},
                               {NNR_INT8, 4},   {NNR_INT8, 8},     {NNR_INT16, 16}, {NNR_INT64, 32},
                               {NNR_FLOAT16, 16}, {NNR_FLOAT64, 64}};
constexpr int64_t kLargestInFloat = 1 << 24;  // up to which binary32 has every integer
constexpr int kLeastExponent = -126, kGreatestExponent = 127;  // of normal binary32 numbers

bool fits_signed(int64_t value, unsigned bits) {
  return value >= -(int64_t{1} << (bits - 1)) && value < int64_t{1} << (bits - 1);
}

// Whether an integer of 32 bits fits a type without fraction.
bool fits(int64_t value, const TypeInfo& info) {
  if (info.kind == Kind::kBool) return value == 0 || value == 1;
  if (info.kind == Kind::kSigned) return info.size > 4 || fits_signed(value, 8u * info.size);
  return value >= 0 && (info.size >= 4 || value < int64_t{1} << (8 * info.size));
}

}  // namespace

bool Values::start(const DataUnit& unit, const UnitTensor& tensor, const Rule* rule,
                   StoredTensor* part, Failure& failure) {
  *this = Values();
  const bool is_whole = unit.payload_type == kInt;
  const Format format = kFormats[unit.data_format != kNoFormat ? unit.data_format : is_whole ? 0 : 1];
  if (is_float(format.type) == is_whole)
    return failure.unsupported("integers with a data format of floats, or the other way round");
  natural_ = type_ = format.type;
  natural_bits_ = format.bits;
  is_raw_ = unit.payload_type == kRawFloat;
  is_quantized_ = !is_whole && !is_raw_;
  codebook_ = tensor.codebook;
#if !NNR_WITH_FLOATS
  if (is_raw_) return failure.unsupported("raw floats, in a build without floats");
#endif
#if NNR_WITH_MAP
  return start_rule(rule, tensor.elements(), is_whole, failure) &&
         start_part(tensor, unit, part, failure);
#else
  (void)rule, (void)part, (void)failure;
  return true;
#endif
}

#if NNR_WITH_DC

bool Values::start_product(const DataUnit& unit, const Rule* rule, Failure& failure) {
  *this = Values();
  natural_ = type_ = kFormats[unit.data_format != kNoFormat ? unit.data_format : 1].type;
  return start_rule(rule, unit.elements, false, failure);
}

Values Values::as_factor() const {
  Values values = *this;
  values.natural_ = values.type_ = NNR_FLOAT32;
  values.rule_ = nullptr;
  return values;
}

#endif

#if NNR_WITH_MAP

void Values::start_weight(nnr_type type) {
  *this = Values();
  natural_ = type_ = type;
}

#endif

#if NNR_WITH_DC || NNR_WITH_MAP

bool Values::start_rule(const Rule* rule, uint64_t coded, bool is_whole, Failure& failure) {
  if (!rule) return true;
  rule_ = rule;
  if (rule->has_shape) {
    const uint64_t integers = rule->integers_per_value();
    const uint64_t values = rule->shape.elements();
    if (values != coded / integers || coded % integers)
      return failure.invalid("a tensor has another number of elements than in the model map");
  }
  if (!rule->has_type) return true;
  type_ = rule->type;
  const bool fits_kind = rule->meaning == Meaning::kNone ? is_float(type_) != is_whole
                                                         : is_whole && natural_ == NNR_INT32;
  return fits_kind || failure.invalid("a tensor has other values than the model map wants");
}

#endif

#if NNR_WITH_MAP

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
  if (!has_shape || (is_table && part_size_ > 65536)) return failure.invalid("a part has another shape");
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
  const float scale = rule_->scale_type == NNR_FLOAT16 ? widened(word & 0xffff, type_info(NNR_FLOAT16))
                                                       : bits_cast<float>(word);
  return static_cast<double>(scale);
}

#endif

bool Values::set_step(int64_t qp, unsigned density, Failure& failure) {
  const int64_t exponent = qp >> density;
  if (exponent < kLeastExponent || exponent > kGreatestExponent)
    return failure.invalid("a quantization step is no normal binary32 number");
  const uint32_t fraction = static_cast<uint32_t>(qp & ((1 << density) - 1));
  step_ = bits_cast<float>(static_cast<uint32_t>(exponent + 127) << 23 | fraction << (23 - density));
  return true;
}

bool Values::look_up(int32_t* integers, size_t count, Failure& failure) const {
  if (!codebook_) return true;
  const int64_t zero = codebook_->zero_offset;
  const int64_t size = static_cast<int64_t>(codebook_->values.size());
  for (size_t i = 0; i < count; ++i) {
    const int64_t index = integers[i] + zero;
    if (index < 0 || index >= size) return failure.invalid("an index lies outside its codebook");
    integers[i] = codebook_->values[static_cast<size_t>(index)];
  }
  return true;
}

bool Values::convert(const int32_t* integers, uint64_t first, size_t count, void* elements,
                     Failure& failure) const {
  uint8_t* to = static_cast<uint8_t*>(elements);
  if (!has_meaning()) {
    return is_quantized_ || is_raw_ ? convert_floats(integers, count, to, failure)
                                    : convert_whole(integers, count, to, failure);
  }
#if NNR_WITH_MAP
  const size_t integers_each = static_cast<size_t>(integers_per_value());
  const size_t size = type_info(type_).size;
  for (size_t i = 0; i < count; ++i)
    if (!convert_meaning(integers + i * integers_each, first + i, to + i * size))
      return failure.invalid("an integer stands for nothing that the model map allows");
#else
  (void)first;
#endif
  return true;
}

bool Values::convert_floats(const int32_t* integers, size_t count, uint8_t* to,
                            Failure& failure) const {
#if NNR_WITH_FLOATS
  const size_t size = type_info(type_).size;
  if (is_plain()) {
    for (size_t i = 0; i < count; ++i) {
      const float value = step_ * static_cast<float>(integers[i]);
      std::memcpy(to + 4 * i, &value, sizeof value);
    }
    return true;
  }
  for (size_t i = 0; i < count; ++i) {
    int32_t integer = integers[i];
    if (!look_up(&integer, 1, failure)) return false;
    float value = is_raw_ ? bits_cast<float>(integer) : step_ * static_cast<float>(integer);
    const bool is_wide = integer > kLargestInFloat || integer < -kLargestInFloat;
    if (codebook_ && is_wide) value = times_step(integer);
    store_float(to + i * size, value, type_);
  }
#else
  (void)integers, (void)count, (void)to, (void)failure;
#endif
  return true;
}

// The integer times the step, rounded once: the step's significand has 8 bits at most, and powers of
// two change nothing, as the product is a normal number or infinite.
float Values::times_step(int32_t integer) const {
  const uint32_t bits = bits_cast<uint32_t>(step_), significand = 0x80 | (bits >> 16 & 0x7f);
  const float power = bits_cast<float>(bits & 0x7f800000);
  return static_cast<float>(int64_t{integer} * static_cast<int64_t>(significand)) * 0x1p-7f * power;
}

bool Values::convert_whole(const int32_t* integers, size_t count, uint8_t* to,
                           Failure& failure) const {
  const TypeInfo& info = type_info(type_);
  for (size_t i = 0; i < count; ++i) {
    const int64_t value = integers[i];
    if (!fits_signed(value, natural_bits_) || !fits(value, info))
      return failure.invalid("an integer does not fit its type");
    store_word(to + i * info.size, static_cast<uint64_t>(value), info.size);
  }
  return true;
}

void Values::convert_number(float number, void* element) const {
#if NNR_WITH_FLOATS
  if (number != number) number = bits_cast<float>(uint32_t{0x7fc00000});
  store_float(element, number, type_);
#else
  (void)number, (void)element;
#endif
}

#if NNR_WITH_MAP

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
    case Meaning::kMantissas: {
      const int64_t exponent = integer + rule_->bits, mantissa = part_[index];
      if (exponent < 0 || exponent >> info.exponent_bits) return false;
      if (!fits_signed(mantissa, info.mantissa_bits + 1u)) return false;
      word = static_cast<uint64_t>(exponent) << info.mantissa_bits;
      word |= static_cast<uint64_t>(mantissa < 0 ? -1 - mantissa : mantissa);
      word |= static_cast<uint64_t>(mantissa < 0 ? 1 : 0) << (bits - 1);
      break;
    }
    default: {
      const unsigned field_bits = static_cast<unsigned>(rule_->field_bits);
      for (unsigned i = 0; i < bits / field_bits; ++i) {
        if (!fits_signed(integers[i], field_bits)) return false;
        word |= static_cast<uint64_t>(integers[i] + (1 << (field_bits - 1))) << (i * field_bits);
      }
    }
  }
  store_word(to, word, info.size);
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

#endif

}  // namespace nnr::device
