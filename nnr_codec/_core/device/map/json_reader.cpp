#include "json_reader.h"

namespace nnr::device {

namespace {

constexpr const char* kNoJson = "the model map is no JSON";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

char* put_utf8(char* to, uint32_t point) {
  const auto put = [&](uint32_t byte) { *to++ = static_cast<char>(byte); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xc0 | point >> 6);
  } else if (point < 0x10000) {
    put(0xe0 | point >> 12);
    put(0x80 | (point >> 6 & 0x3f));
  } else {
    put(0xf0 | point >> 18);
    put(0x80 | (point >> 12 & 0x3f));
    put(0x80 | (point >> 6 & 0x3f));
  }
  if (point >= 0x80) put(0x80 | (point & 0x3f));
  return to;
}

}  // namespace

char JsonReader::peek() {
  while (at_ < end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  return at_ < end_ ? *at_ : 0;
}

bool JsonReader::expect(char c) {
  if (peek() != c || at_ == end_) return fail(kNoJson);
  ++at_;
  return true;
}

bool JsonReader::next(bool& is_first, char last) {
  if (!ok()) return false;
  const bool was_first = is_first;
  is_first = false;
  if (peek() == last) {
    ++at_;
    return false;
  }
  return was_first || expect(',');
}

bool JsonReader::next_key(bool& is_first, Text& key) {
  return next(is_first, '}') && read_text(key) && expect(':');
}

bool JsonReader::finish() { return ok() && (peek() == 0 && at_ == end_ ? true : fail(kNoJson)); }

bool JsonReader::read_text(Text& text) {
  if (!expect('"')) return false;
  const char* start = at_;
  bool has_escapes = false;
  while (at_ < end_ && *at_ != '"') {
    if (static_cast<uint8_t>(*at_) < 0x20) return fail(kNoJson);
    const bool escape = *at_ == '\\';
    has_escapes = has_escapes || escape;
    at_ += escape ? 2 : 1;
  }
  if (at_ >= end_) return fail(kNoJson);
  const char* stop = at_;
  text = {start, static_cast<size_t>(stop - start)};
  if (has_escapes) {
    if (text.size > scratch_.size() && !scratch_.allocate(text.size)) return failure_->no_memory();
    char* to = scratch_.data();
    for (at_ = start; at_ < stop;) {
      if (*at_ != '\\') {
        *to++ = *at_++;
      } else if (!read_escape(to)) {
        return false;
      }
    }
    text = {scratch_.data(), static_cast<size_t>(to - scratch_.data())};
  }
  at_ = stop + 1;
  return true;
}

// Reads an escape, which is never shorter than what it stands for.
bool JsonReader::read_escape(char*& to) {
  static constexpr char kEscapes[] = "\"\\/bfnrt", kMeanings[] = "\"\\/\b\f\n\r\t";
  const char letter = at_[1];
  at_ += 2;
  if (letter != 'u') {
    for (int i = 0; kEscapes[i]; ++i) {
      if (kEscapes[i] != letter) continue;
      *to++ = kMeanings[i];
      return true;
    }
    return fail(kNoJson);
  }
  uint32_t point = 0, low = 0;
  if (!read_hexadecimal(point)) return false;
  if (point >= 0xd800 && point < 0xe000) {
    const bool is_pair = point < 0xdc00 && end_ - at_ > 6 && at_[0] == '\\' && at_[1] == 'u';
    if (!is_pair) return fail("a text of the model map is no Unicode");
    at_ += 2;
    if (!read_hexadecimal(low)) return false;
    if (low < 0xdc00 || low >= 0xe000) return fail("a text of the model map is no Unicode");
    point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
  }
  to = put_utf8(to, point);
  return true;
}

bool JsonReader::read_hexadecimal(uint32_t& unit) {
  if (end_ - at_ < 4) return fail(kNoJson);
  unit = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = static_cast<char>(*at_ | 0x20);
    const bool is_letter = c >= 'a' && c <= 'f';
    if (!is_letter && !is_digit(*at_)) return fail(kNoJson);
    unit = unit << 4 | static_cast<uint32_t>(is_letter ? c - 'a' + 10 : *at_ - '0');
  }
  return true;
}

bool JsonReader::skip_digits() {
  if (at_ == end_ || !is_digit(*at_)) return fail(kNoJson);
  while (at_ < end_ && is_digit(*at_)) ++at_;
  return true;
}

bool JsonReader::read_number(Text& number, bool& is_whole) {
  peek();
  const char* start = at_;
  is_whole = true;
  if (at_ < end_ && *at_ == '-') ++at_;
  const char* first = at_;
  if (!skip_digits()) return false;
  if (*first == '0' && at_ - first > 1) return fail(kNoJson);
  if (at_ < end_ && *at_ == '.') {
    ++at_;
    is_whole = false;
    if (!skip_digits()) return false;
  }
  if (at_ < end_ && (*at_ | 0x20) == 'e') {
    ++at_;
    is_whole = false;
    if (at_ < end_ && (*at_ == '+' || *at_ == '-')) ++at_;
    if (!skip_digits()) return false;
  }
  number = {start, static_cast<size_t>(at_ - start)};
  return true;
}

bool JsonReader::read_whole(int64_t& number) {
  Text text;
  bool is_whole = false;
  if (!read_number(text, is_whole)) return false;
  if (!is_whole) return fail("a number of the model map is not whole");
  const bool is_negative = text.data[0] == '-';
  int64_t value = 0;
  for (size_t i = is_negative ? 1 : 0; i < text.size; ++i) {
    if (value > (INT64_MAX - 9) / 10) {
      number = is_negative ? INT64_MIN : INT64_MAX;
      return true;
    }
    value = 10 * value + (text.data[i] - '0');
  }
  number = is_negative ? -value : value;
  return true;
}

}  // namespace nnr::device
