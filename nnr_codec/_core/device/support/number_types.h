// Element types: their sizes, names, and conversion from and to binary32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../nnr.h"

namespace nnr::device {

enum class Kind : uint8_t { kBool, kSigned, kUnsigned, kFloat };

// What a floating-point type does without infinities.
enum class Special : uint8_t {
  kIeee,          // infinities and NaNs
  kFinite,        // "fn": no infinities, the greatest magnitude is NaN
  kUnsignedZero,  // "fnuz": neither infinities nor -0, whose bits are NaN
  kPowers,        // e8m0fnu: powers of two alone, 255 is NaN
};

struct TypeInfo {
  const char* name;
  uint8_t size;  // bytes
  Kind kind;
  uint8_t exponent_bits, mantissa_bits;
  uint8_t bias;  // of types of less than 32 bits
  Special special;
};

inline constexpr int kTypeCount = NNR_FLOAT8_E8M0FNU + 1;

const TypeInfo& type_info(nnr_type type);
// The type of numpy's name; kTypeCount if there is none.
int type_of_name(const char* name, size_t size);

inline bool is_float(nnr_type type) { return type_info(type).kind == Kind::kFloat; }
// Floating-point types with a sign.
inline bool is_signed_float(nnr_type type) { return is_float(type) && type != NNR_FLOAT8_E8M0FNU; }

template <class To, class From>
To bits_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline bool is_finite(float value) {
  return (bits_cast<uint32_t>(value) & 0x7f800000u) != 0x7f800000u;
}

// Bits of a floating-point type of less than 32 bits nearest to a number (ties to even).
uint32_t narrowed(float value, const TypeInfo& type);
// The number that bits of such a type are.
float widened(uint32_t bits, const TypeInfo& type);
// Whether they are neither infinite nor NaN.
bool is_finite_narrow(uint32_t bits, const TypeInfo& type);

// Stores a word of `size` bytes in the processor's byte order, and loads one.
void store_word(void* to, uint64_t word, size_t size);
uint64_t load_word(const void* from, size_t size);

// Stores a number as an element of floating-point type, and loads an element of any type.
void store_float(void* to, float value, nnr_type type);
double load_number(const void* from, nnr_type type);  // of builds with products
float load_float(const void* from, nnr_type type);

}  // namespace nnr::device
