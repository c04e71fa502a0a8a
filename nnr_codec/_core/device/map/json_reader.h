// Reads a JSON text (RFC 8259) from front to back: the caller says what is to come.
#pragma once

#include <cstdint>

#include "../support/failure.h"
#include "../support/memory.h"
#include "../support/utf8.h"

namespace nnr::device {

// Whatever is not as it must be is an error of the failure, and false. The text is UTF-8.
class JsonReader {
 public:
  JsonReader(const Text& text, const nnr_memory& memory, Failure& failure)
      : at_(text.data), end_(text.data + text.size), scratch_(memory), failure_(&failure) {}

  // An object: begin_object, then next_key until it is false; likewise an array. `is_first`: true
  // at first, one for each object or array.
  bool begin_object() { return expect('{'); }
  bool next_key(bool& is_first, Text& key);
  bool begin_array() { return expect('['); }
  bool next_item(bool& is_first) { return next(is_first, ']'); }

  // A text; valid until the next one is read.
  bool read_text(Text& text);
  // A number as it is written; `is_whole`: without fraction and exponent.
  bool read_number(Text& number, bool& is_whole);
  // A whole number; what is too large becomes INT64_MAX or INT64_MIN.
  bool read_whole(int64_t& number);
  // The character that the next value begins with; 0 at the end.
  char peek();
  // Checks that nothing follows.
  bool finish();

  bool fail(Reason reason) { return failure_->invalid(reason); }
  bool ok() const { return !failure_->is_set(); }

 private:
  bool expect(char c);
  bool next(bool& is_first, char last);
  bool read_escape(char*& to);
  bool read_hexadecimal(uint32_t& unit);
  bool skip_digits();

  const char* at_;
  const char* end_;
  Array<char> scratch_;
  Failure* failure_;
};

}  // namespace nnr::device
