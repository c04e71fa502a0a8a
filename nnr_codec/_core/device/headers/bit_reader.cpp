#include "bit_reader.h"

namespace nnr::device {

uint32_t BitReader::u(unsigned bits) {
  if (bits > bits_left()) {
    fail(NNR_TRUNCATED, "a syntax element reaches past the end of its unit");
    bit_ = end_;
  }
  if (!ok()) return 0;
  uint64_t value = 0;
  const uint64_t first = bit_ >> 3, last = (bit_ + bits + 7) >> 3;
  for (uint64_t byte = first; byte < last; ++byte) value = value << 8 | data_[byte];
  bit_ += bits;
  value >>= 8 * last - bit_;
  return static_cast<uint32_t>(value & ((uint64_t{1} << bits) - 1));
}

int32_t BitReader::i(unsigned bits) {
  const uint32_t value = u(bits);
  const uint32_t sign = uint32_t{1} << (bits - 1);
  return static_cast<int32_t>(value ^ sign) - static_cast<int32_t>(sign);
}

uint32_t BitReader::ue(unsigned order) {
  uint32_t value = 0;
  while (u(1) == 0) {
    if (!ok()) return 0;
    value += uint32_t{1} << order;
    if (++order > 31) {
      invalid("an Exp-Golomb code has too many leading zeros");
      return 0;
    }
  }
  return value + u(order);
}

int64_t BitReader::ie(unsigned order) {
  const int64_t code = ue(order);
  return code & 1 ? (code + 1) >> 1 : -(code >> 1);
}

void BitReader::skip(uint64_t bits) {
  if (bits > bits_left()) {
    fail(NNR_TRUNCATED, "a syntax element reaches past the end of its unit");
    bits = bits_left();
  }
  bit_ += bits;
}

void BitReader::zeros(unsigned bits) {
  if (u(bits) != 0) invalid("reserved bits are not 0");
}

void BitReader::align() {
  const unsigned bits = 8 - static_cast<unsigned>(bit_ & 7);
  if (u(bits) != uint32_t{1} << (bits - 1)) invalid("alignment is not a 1 followed by zeros");
}

Text BitReader::st(uint64_t most) {
  const uint64_t left = bits_left() >> 3;
  const uint8_t* start = data_ + (bit_ >> 3);
  uint64_t size = 0;
  while (size < left && size <= most && start[size] != 0) ++size;
  if (size == left) {
    fail(NNR_TRUNCATED, "a text is not ended inside its unit");
  } else if (size > most) {
    fail(NNR_LIMIT, "a text is longer than the limit");
  } else if (!is_utf8(start, static_cast<size_t>(size))) {
    invalid("a text is not UTF-8");
  }
  if (!ok()) return {};
  bit_ += 8 * (size + 1);
  return {reinterpret_cast<const char*>(start), static_cast<size_t>(size)};
}

void BitReader::rest(uint64_t most) {
  if (bits_left() >> 3 > most) fail(NNR_LIMIT, "topology data are longer than the limit");
  bit_ = end_;
}

}  // namespace nnr::device
