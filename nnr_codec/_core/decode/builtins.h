// What compilers have of their own, each with a plain form for those that lack it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#include <stdlib.h>
#endif

namespace nnr {

#if defined(__GNUC__)
#define NNR_UNLIKELY(condition) __builtin_expect((condition), 0)
#else
#define NNR_UNLIKELY(condition) (condition)
#endif

// Zero bits above the highest one of a number that is not 0.
inline int leading_zeros(uint32_t number) {
#if defined(__GNUC__)
  return __builtin_clz(number);
#elif defined(_MSC_VER)
  unsigned long highest;
  _BitScanReverse(&highest, number);
  return 31 - static_cast<int>(highest);
#else
  int zeros = 0;
  for (; !(number & 0x80000000u); number <<= 1) ++zeros;
  return zeros;
#endif
}

// Eight bytes, the first one most significant.
inline uint64_t load_big_endian(const uint8_t* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, sizeof value);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  value = __builtin_bswap64(value);
#elif defined(_MSC_VER)
  value = _byteswap_uint64(value);
#elif !defined(__BYTE_ORDER__)
  value = 0;
  for (int i = 0; i < 8; ++i) value = value << 8 | bytes[i];
#endif
  return value;
}

}  // namespace nnr
