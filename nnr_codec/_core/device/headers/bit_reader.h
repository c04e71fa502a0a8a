// Reads the descriptors of the syntax inside one unit (spec/bitstream.md, "Notation").
#pragma once

#include <cstddef>
#include <cstdint>

#include "../support/failure.h"
#include "../support/utf8.h"

namespace nnr::device {

// After an error all is read as zeros; ok() tells.
class BitReader {
 public:
  BitReader() = default;
  BitReader(const uint8_t* data, size_t size, Failure& failure)
      : data_(data), end_(8 * static_cast<uint64_t>(size)), failure_(&failure) {}

  bool ok() const { return !failure_->is_set(); }
  uint64_t position() const { return bit_; }  // in bits
  uint64_t bits_left() const { return end_ - bit_; }
  size_t bytes_read() const { return static_cast<size_t>((bit_ + 7) >> 3); }

  uint32_t u(unsigned bits);  // 0..32 bits
  bool flag() { return u(1) != 0; }
  int32_t i(unsigned bits);  // 1..31 bits
  uint32_t ue(unsigned order);
  int64_t ie(unsigned order);
  void skip(uint64_t bits);
  void zeros(unsigned bits);  // reserved
  void align();
  // Text of at most `most` bytes; its bytes stay where they are.
  Text st(uint64_t most);
  // The bytes up to the unit's end, of which there may be `most`.
  void rest(uint64_t most);

  // Notes an error at the place reached.
  bool fail(nnr_status status, Reason reason) { return failure_->set(status, reason, bit_ >> 3); }
  bool invalid(Reason reason) { return fail(NNR_INVALID, reason); }
  // Whether `count` codes of `bits` each may follow; else notes that the unit ends before.
  bool fits(uint64_t count, uint64_t bits) {
    return count <= bits_left() / bits || fail(NNR_TRUNCATED, "a list is longer than its unit");
  }

 private:
  const uint8_t* data_ = nullptr;
  uint64_t bit_ = 0;
  uint64_t end_ = 0;
  Failure* failure_ = nullptr;
};

}  // namespace nnr::device
