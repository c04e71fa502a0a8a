#include "values.h"

namespace nnr::device {

namespace {

struct Format {
  nnr_type type;
  unsigned bits;
};
// By nnr_decompressed_data_format.
constexpr Format kFormats[] = {
    {NNR_INT32, 32}, {NNR_FLOAT32, 32}, {NNR_INT8, 2},   {NNR_INT8, 3},     {NNR_INT8, 4},
    {NNR_INT8, 8},   {NNR_INT16, 16},   {NNR_INT64, 32}, {NNR_FLOAT16, 16}, {NNR_FLOAT64, 64}};
constexpr int64_t kLargestInFloat = 1 << 24;  // up to which binary32 has every integer
constexpr int kLeastExponent = -126, kGreatestExponent = 127;  // of normal binary32 numbers

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
  const Format format = kFormats[unit.data_format != kNoFormat ? unit.data_format
                                 : is_whole                    ? 0
                                                               : 1];
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

bool Values::set_step(int64_t qp, unsigned density, Failure& failure) {
  const int64_t exponent = qp >> density;
  if (exponent < kLeastExponent || exponent > kGreatestExponent)
    return failure.invalid("a quantization step is no normal binary32 number");
  const uint32_t fraction = static_cast<uint32_t>(qp & ((1 << density) - 1));
  step_ =
      bits_cast<float>(static_cast<uint32_t>(exponent + 127) << 23 | fraction << (23 - density));
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

// The integer times the step, rounded once: the step's significand has 8 bits at most, and powers
// of two change nothing, as the product is a normal number or infinite.
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

}  // namespace nnr::device
