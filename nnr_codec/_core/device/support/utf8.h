// Texts of a bitstream: bytes that need not end with a zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace nnr::device {

struct Text {
  const char* data = nullptr;
  size_t size = 0;

  bool equals(const Text& other) const {
    return size == other.size && (size == 0 || std::memcmp(data, other.data, size) == 0);
  }
  bool equals(const char* word) const { return equals(Text{word, std::strlen(word)}); }
  bool ends_with(char letter) const {  // "_G" or "_H"
    return size >= 2 && data[size - 2] == '_' && data[size - 1] == letter;
  }
  Text without_last(size_t count) const { return {data, size - count}; }

  // Order of the code points, which that of the bytes of UTF-8 is.
  bool precedes(const Text& other) const {
    const size_t common = size < other.size ? size : other.size;
    const int order = common ? std::memcmp(data, other.data, common) : 0;
    return order ? order < 0 : size < other.size;
  }
};

// Bytes of the code point that begins at `bytes`; 0 if it is no UTF-8.
inline size_t utf8_length(const uint8_t* bytes, size_t size) {
  const uint8_t first = bytes[0];
  if (first < 0x80) return 1;
  const size_t length = first < 0xc2   ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (length == 0 || length > size) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((bytes[i] & 0xc0) != 0x80) return 0;
  const uint8_t second = bytes[1];
  const bool too_long = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
  const bool surrogate = first == 0xed && second >= 0xa0;
  const bool too_large = first == 0xf4 && second >= 0x90;
  return too_long || surrogate || too_large ? 0 : length;
}

inline bool is_utf8(const uint8_t* bytes, size_t size) {
  while (size > 0) {
    const size_t length = utf8_length(bytes, size);
    if (length == 0) return false;
    bytes += length;
    size -= length;
  }
  return true;
}

}  // namespace nnr::device
