#include "number_types.h"

#include "config.h"

namespace nnr::device {

namespace {

constexpr TypeInfo kTypes[kTypeCount] = {
    {"bool", 1, Kind::kBool, 0, 0, 0, Special::kIeee},
    {"int8", 1, Kind::kSigned, 0, 0, 0, Special::kIeee},
    {"int16", 2, Kind::kSigned, 0, 0, 0, Special::kIeee},
    {"int32", 4, Kind::kSigned, 0, 0, 0, Special::kIeee},
    {"int64", 8, Kind::kSigned, 0, 0, 0, Special::kIeee},
    {"uint8", 1, Kind::kUnsigned, 0, 0, 0, Special::kIeee},
    {"uint16", 2, Kind::kUnsigned, 0, 0, 0, Special::kIeee},
    {"uint32", 4, Kind::kUnsigned, 0, 0, 0, Special::kIeee},
    {"uint64", 8, Kind::kUnsigned, 0, 0, 0, Special::kIeee},
    {"float16", 2, Kind::kFloat, 5, 10, 15, Special::kIeee},
    {"bfloat16", 2, Kind::kFloat, 8, 7, 127, Special::kIeee},
    {"float32", 4, Kind::kFloat, 8, 23, 127, Special::kIeee},
    {"float64", 8, Kind::kFloat, 11, 52, 0, Special::kIeee},
    {"float8_e4m3fn", 1, Kind::kFloat, 4, 3, 7, Special::kFinite},
    {"float8_e4m3fnuz", 1, Kind::kFloat, 4, 3, 8, Special::kUnsignedZero},
    {"float8_e5m2", 1, Kind::kFloat, 5, 2, 15, Special::kIeee},
    {"float8_e5m2fnuz", 1, Kind::kFloat, 5, 2, 16, Special::kUnsignedZero},
    {"float8_e8m0fnu", 1, Kind::kFloat, 8, 0, 127, Special::kPowers},
};

uint32_t sign_bit(const TypeInfo& type) { return uint32_t{1} << (8 * type.size - 1); }

// The largest magnitude that is a number.
uint32_t largest_finite(const TypeInfo& type) {
  const uint32_t all = sign_bit(type) - 1;
  if (type.special == Special::kIeee) return (all >> type.mantissa_bits << type.mantissa_bits) - 1;
  return type.special == Special::kFinite ? all - 1 : all;
}

uint32_t not_a_number(const TypeInfo& type) {
  if (type.special == Special::kUnsignedZero) return sign_bit(type);
  if (type.special == Special::kFinite) return sign_bit(type) - 1;
  return largest_finite(type) + 1 + (uint32_t{1} << (type.mantissa_bits - 1));  // quiet
}

// Powers of two: to the nearest, ties to the even exponent field.
uint32_t nearest_power(float value) {
  constexpr uint32_t kNan = 255;
  const uint32_t bits = bits_cast<uint32_t>(value);
  if (!(value > 0) || !is_finite(value)) return kNan;
  const uint32_t field = bits >> 23, mantissa = bits & 0x7fffff;
  if (field == 0) return mantissa > 0x400000 ? 1 : 0;  // above 2^-127, as ml_dtypes has it
  const bool up = mantissa > 0x400000 || (mantissa == 0x400000 && (field & 1));
  return field + (up ? 1 : 0);
}

// Bits of the binary64 number of the same value. In integers, as many processors have no binary64.
uint64_t widened_to_64(float value) {
  const uint32_t bits = bits_cast<uint32_t>(value);
  const uint64_t sign = static_cast<uint64_t>(bits >> 31) << 63;
  uint32_t field = bits >> 23 & 0xff, mantissa = bits & 0x7fffff;
  if (field == 0xff) return sign | uint64_t{0x7ff} << 52 | static_cast<uint64_t>(mantissa) << 29;
  if (field == 0 && mantissa == 0) return sign;
  uint64_t wide = uint64_t{field} + (1023 - 127);
  if (field == 0) {
    for (++wide; !(mantissa & 0x800000); mantissa <<= 1) --wide;
    mantissa &= 0x7fffff;
  }
  return sign | wide << 52 | static_cast<uint64_t>(mantissa) << 29;
}

}  // namespace

const TypeInfo& type_info(nnr_type type) { return kTypes[type]; }

int type_of_name(const char* name, size_t size) {
  int type = 0;
  while (type < kTypeCount && (std::strlen(kTypes[type].name) != size ||
                               std::memcmp(kTypes[type].name, name, size) != 0))
    ++type;
  return type;
}

uint32_t narrowed(float value, const TypeInfo& type) {
  if (type.special == Special::kPowers) return nearest_power(value);
  const uint32_t bits = bits_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
  uint32_t sign = bits >> 31 ? sign_bit(type) : 0;
  if (magnitude > 0x7f800000) {
    return type.special == Special::kUnsignedZero ? sign_bit(type) : sign | not_a_number(type);
  }
  uint32_t result = largest_finite(type) + 1;
  if (magnitude < 0x7f800000) {
    const int field = static_cast<int>(magnitude >> 23);
    const uint32_t significand = (magnitude & 0x7fffff) | (field ? 0x800000 : 0);
    const int least = 1 - type.bias;  // exponent of the least normal number
    const int exponent = (field ? field : 1) - 127;
    const int shift = 23 - type.mantissa_bits + (exponent < least ? least - exponent : 0);
    const uint32_t kept = shift > 24 ? 0 : significand >> shift;
    const uint32_t rest = shift > 24 ? 0 : significand - (kept << shift);
    const uint32_t half = shift > 24 ? 1 : uint32_t{1} << (shift - 1);
    const uint32_t rounded = kept + (rest > half || (rest == half && (kept & 1)) ? 1 : 0);
    const int steps = exponent > least ? exponent - least : 0;
    result = (static_cast<uint32_t>(steps) << type.mantissa_bits) + rounded;
  }
  if (result > largest_finite(type))
    result = type.special == Special::kIeee ? largest_finite(type) + 1 : not_a_number(type);
  if (type.special == Special::kUnsignedZero && (result == 0 || result == sign_bit(type))) sign = 0;
  return sign | result;
}

float widened(uint32_t bits, const TypeInfo& type) {
  if (type.special == Special::kPowers) {
    if (bits == 255) return bits_cast<float>(uint32_t{0x7fc00000});
    return bits_cast<float>(bits == 0 ? uint32_t{0x400000} : bits << 23);
  }
  const uint32_t sign = bits & sign_bit(type) ? 0x80000000u : 0;
  const uint32_t magnitude = bits & (sign_bit(type) - 1);
  if (!is_finite_narrow(bits, type)) {
    const bool infinite = type.special == Special::kIeee && magnitude == largest_finite(type) + 1;
    return bits_cast<float>(infinite ? sign | 0x7f800000u : uint32_t{0x7fc00000});
  }
  if (type.bias == 127) return bits_cast<float>(bits << 16);  // bfloat16
  const uint32_t field = magnitude >> type.mantissa_bits;
  uint32_t mantissa = magnitude & ((uint32_t{1} << type.mantissa_bits) - 1);
  if (field) mantissa |= uint32_t{1} << type.mantissa_bits;
  const int exponent = static_cast<int>(field ? field : 1) - type.bias - type.mantissa_bits;
  const float scale = bits_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
  return bits_cast<float>(bits_cast<uint32_t>(static_cast<float>(mantissa) * scale) | sign);
}

bool is_finite_narrow(uint32_t bits, const TypeInfo& type) {
  if (type.special == Special::kPowers) return bits != 255;
  if (type.special == Special::kUnsignedZero) return bits != sign_bit(type);
  return (bits & (sign_bit(type) - 1)) <= largest_finite(type);
}

void store_word(void* to, uint64_t word, size_t size) {
  const uint8_t byte = static_cast<uint8_t>(word);
  const uint16_t two = static_cast<uint16_t>(word);
  const uint32_t four = static_cast<uint32_t>(word);
  const void* from = size == 1   ? static_cast<const void*>(&byte)
                     : size == 2 ? static_cast<const void*>(&two)
                     : size == 4 ? static_cast<const void*>(&four)
                                 : &word;
  std::memcpy(to, from, size);
}

uint64_t load_word(const void* from, size_t size) {
  if (size == 1) return *static_cast<const uint8_t*>(from);
  if (size == 2) {
    uint16_t word;
    std::memcpy(&word, from, size);
    return word;
  }
  if (size == 4) {
    uint32_t word;
    std::memcpy(&word, from, size);
    return word;
  }
  uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

void store_float(void* to, float value, nnr_type type) {
  if (type == NNR_FLOAT32) {
    std::memcpy(to, &value, sizeof value);
  } else if (type == NNR_FLOAT64) {
    const uint64_t wide = widened_to_64(value);
    std::memcpy(to, &wide, sizeof wide);
  } else {
    store_word(to, narrowed(value, kTypes[type]), kTypes[type].size);
  }
}

#if NNR_WITH_DC

double load_number(const void* from, nnr_type type) {
  const TypeInfo& info = kTypes[type];
  const uint64_t word = load_word(from, info.size);
  if (type == NNR_FLOAT64) return bits_cast<double>(word);
  if (info.kind == Kind::kFloat) return load_float(from, type);
  if (info.kind != Kind::kSigned) return static_cast<double>(word);
  const int unused = 64 - 8 * info.size;
  return static_cast<double>(static_cast<int64_t>(word << unused) >> unused);
}

#endif

float load_float(const void* from, nnr_type type) {
  const TypeInfo& info = kTypes[type];
  const uint64_t word = load_word(from, info.size);
  if (type == NNR_FLOAT32) return bits_cast<float>(static_cast<uint32_t>(word));
  if (type == NNR_FLOAT64) return static_cast<float>(bits_cast<double>(word));
  if (info.kind == Kind::kFloat) return widened(static_cast<uint32_t>(word), info);
  if (info.kind != Kind::kSigned) return static_cast<float>(word);
  const int unused = 64 - 8 * info.size;
  return static_cast<float>(static_cast<int64_t>(word << unused) >> unused);
}

}  // namespace nnr::device
