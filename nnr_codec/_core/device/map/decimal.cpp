#include "decimal.h"

#include <cstdint>

#include "../support/number_types.h"

namespace nnr::device {

namespace {

constexpr int kMaxDigits = 240;    // no number half-way between two of binary64 in range has more
constexpr int kMaxExponent = 70;   // of ten, of numbers in range
constexpr int kQuotientBits = 54;  // 53, and one to round by

// A natural number of up to 1344 bits, least significant word first.
class Natural {
 public:
  explicit Natural(uint32_t value) { words_[0] = value; }

  void multiply_add(uint32_t factor, uint32_t term) {
    uint64_t carry = term;
    for (uint32_t& word : words_) {
      carry += static_cast<uint64_t>(word) * factor;
      word = static_cast<uint32_t>(carry);
      carry >>= 32;
    }
  }

  void shift_left(int bits) {
    const int whole = bits / 32, part = bits % 32;
    for (int i = kWords - 1; i >= 0; --i) {
      uint32_t word = i >= whole ? words_[i - whole] << part : 0;
      if (part && i > whole) word |= words_[i - whole - 1] >> (32 - part);
      words_[i] = word;
    }
  }

  // Subtracts a number that is not greater; returns whether it is.
  bool subtract_if_not_above(const Natural& other) {
    for (int i = kWords - 1; i >= 0; --i) {
      if (words_[i] < other.words_[i]) return false;
      if (words_[i] > other.words_[i]) break;
    }
    uint64_t borrow = 0;
    for (int i = 0; i < kWords; ++i) {
      const uint64_t difference = uint64_t{words_[i]} - other.words_[i] - borrow;
      words_[i] = static_cast<uint32_t>(difference);
      borrow = difference >> 63;
    }
    return true;
  }

  int bits() const {
    int i = kWords - 1;
    while (i > 0 && words_[i] == 0) --i;
    int bits = 32 * i;
    for (uint32_t word = words_[i]; word; word >>= 1) ++bits;
    return bits;
  }

 private:
  static constexpr int kWords = 42;
  uint32_t words_[kWords] = {};
};

struct Decimal {
  Natural digits{0};
  int64_t exponent = 0;  // of ten
  bool is_negative = false;
  bool has_rest = false;  // digits beyond those that were kept, not all of them 0
  int count = 0;          // digits kept
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int64_t read_exponent(const char* at, const char* end) {
  const bool is_negative = *at == '-';
  if (*at == '-' || *at == '+') ++at;
  int64_t exponent = 0;
  for (; at < end; ++at) exponent = exponent < 1000000000 ? 10 * exponent + (*at - '0') : exponent;
  return is_negative ? -exponent : exponent;
}

void read(const Text& text, Decimal& decimal) {
  const char* end = text.data + text.size;
  bool is_fraction = false;
  for (const char* at = text.data; at < end; ++at) {
    if (*at == '-') {
      decimal.is_negative = true;
    } else if (*at == '.') {
      is_fraction = true;
    } else if (!is_digit(*at)) {
      decimal.exponent += read_exponent(at + 1, end);
      return;
    } else if (decimal.count < kMaxDigits) {
      const uint32_t digit = static_cast<uint32_t>(*at - '0');
      decimal.digits.multiply_add(10, digit);
      if (decimal.count || digit) ++decimal.count;
      if (is_fraction) --decimal.exponent;
    } else {
      decimal.has_rest = decimal.has_rest || *at != '0';
      if (!is_fraction) ++decimal.exponent;
    }
  }
}

double power_of_two(int exponent) {
  return bits_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

}  // namespace

double decimal_value(const Text& text) {
  Decimal decimal;
  read(text, decimal);
  if (decimal.count == 0) return 0;
  const int64_t magnitude = decimal.count + decimal.exponent;  // below ten to this
  double value = 0;
  if (magnitude > kMaxExponent) {
    value = power_of_two(1023) * 2;
  } else if (magnitude >= -kMaxExponent) {
    Natural divisor(1);
    for (int64_t i = 0; i < decimal.exponent; ++i) decimal.digits.multiply_add(10, 0);
    for (int64_t i = decimal.exponent; i < 0; ++i) divisor.multiply_add(10, 0);
    int shift = kQuotientBits - (decimal.digits.bits() - divisor.bits());
    shift > 0 ? decimal.digits.shift_left(shift) : divisor.shift_left(-shift);
    divisor.shift_left(kQuotientBits + 1);
    uint64_t quotient = 0;  // of 54 or 55 bits
    for (int i = 0; i <= kQuotientBits + 1; ++i) {
      quotient = quotient << 1 | (decimal.digits.subtract_if_not_above(divisor) ? 1 : 0);
      decimal.digits.shift_left(1);  // instead of halving the divisor
    }
    bool has_rest = decimal.has_rest || decimal.digits.bits() > 0;
    while (quotient >> kQuotientBits) {
      has_rest = has_rest || (quotient & 1);
      quotient >>= 1;
      --shift;
    }
    const bool up = (quotient & 1) && (has_rest || (quotient & 2));
    value = static_cast<double>((quotient >> 1) + (up ? 1 : 0)) * power_of_two(1 - shift);
  }
  return decimal.is_negative ? -value : value;
}

}  // namespace nnr::device
