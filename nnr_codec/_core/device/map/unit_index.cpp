#include "unit_index.h"

#include "../support/inflate.h"

namespace nnr::device {

namespace {

constexpr uint64_t kMaxNameBytes = uint64_t{1} << 23;
constexpr char kLetters[] = {'w', 'G', 'H', 'l', 'e', 'g', 'm', 'v', 'b', 'd'};  // by nnr_role

int base64_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

uint32_t load_word32(const uint8_t* bytes) {
  return static_cast<uint32_t>(bytes[0]) << 24 | static_cast<uint32_t>(bytes[1]) << 16 |
         static_cast<uint32_t>(bytes[2]) << 8 | bytes[3];
}

// Decodes base64 with padding, unused bits being 0; the bytes' number, or SIZE_MAX if it is none.
size_t decode_base64(const Text& text, uint8_t* bytes) {
  if (text.size % 4) return SIZE_MAX;
  size_t written = 0;
  for (size_t i = 0; i < text.size; i += 4) {
    const bool is_last = i + 4 == text.size;
    const int padding = !is_last || text.data[i + 3] != '=' ? 0 : text.data[i + 2] == '=' ? 2 : 1;
    uint32_t bits = 0;
    for (size_t k = 0; k < 4; ++k) {
      const int value = static_cast<int>(k) < 4 - padding ? base64_value(text.data[i + k]) : 0;
      if (value < 0) return SIZE_MAX;
      bits = bits << 6 | static_cast<uint32_t>(value);
    }
    if (bits & ((1u << (8 * padding)) - 1)) return SIZE_MAX;
    for (int k = 0; k < 3 - padding; ++k)
      bytes[written++] = static_cast<uint8_t>(bits >> (16 - 8 * k));
  }
  return written;
}

}  // namespace

bool UnitIndex::parse(const Text& text, Failure& failure) {
  is_present_ = true;
  text_ = text;
  if (!table_.allocate(text.size / 4 * 3 + 1)) return failure.no_memory();
  const size_t size = decode_base64(text, table_.data());
  if (size == SIZE_MAX) return failure.invalid("index is no base64 text");
  if (size < kHeadBytes) return failure.invalid("index is too short");
  count_ = load_word32(table_.data() + kDigestBytes);
  if ((size - kHeadBytes) / kEntryBytes < count_) return failure.invalid("index is too short");
  const size_t names = kHeadBytes + count_ * kEntryBytes;
  const InflateStatus status =
      inflate(table_.data() + names, size - names, kMaxNameBytes, names_, names_size_);
  if (status == InflateStatus::kNoMemory) return failure.no_memory();
  return status == InflateStatus::kOk || failure.invalid("index has damaged names");
}

bool UnitIndex::begin(const uint8_t* unit, size_t size, Failure& failure) {
  static constexpr char kBehind[] = "\"}";  // and the zero that ends the text
  const size_t behind = sizeof kBehind;
  const bool is_last = size >= text_.size + behind &&
                       std::memcmp(unit + size - behind, kBehind, behind) == 0 &&
                       std::memcmp(unit + size - behind - text_.size, text_.data, text_.size) == 0;
  if (!is_last) return failure.invalid("index is not the last key of the model map");
  head_.update(unit, size - behind - text_.size);
  head_.update(unit + size - behind, behind);
  text_ = {};
  uint8_t digest[kDigestBytes];
  head_.finish(digest, kDigestBytes);
  return std::memcmp(digest, table_.data(), kDigestBytes) == 0 ||
         failure.invalid("the bitstream's head has another digest than in index");
}

bool UnitIndex::check_size(uint64_t size, Failure& failure) const {
  if (!is_present_) return true;
  if (next_ == count_) return failure.invalid("a unit that is not in index");
  return load_word32(table_.data() + kHeadBytes + next_ * kEntryBytes) == size ||
         failure.invalid("a unit has another size than in index");
}

bool UnitIndex::check_unit(const uint8_t* unit, size_t size, const DataUnit* data_unit,
                           Failure& failure) {
  if (!is_present_) return true;
  const uint8_t* entry = table_.data() + kHeadBytes + next_++ * kEntryBytes;
  UnitTensor tensors[kMaxUnitTensors];
  const int count = data_unit ? data_unit->tensors_by_name(tensors) : 0;
  bool has_names = true;
  for (int i = 0; i < count; ++i)
    has_names = has_names && next_is(kLetters[tensors[i].role], tensors[i].name);
  if (data_unit && data_unit->is_decomposed_block())
    has_names = has_names && next_is(kLetters[NNR_PRODUCT], data_unit->product_name());
  has_names = has_names && names_read_ < names_size_ && names_[names_read_++] == 0;
  if (!has_names) return failure.invalid("a unit has other tensors than in index");
  uint8_t digest[kDigestBytes];
  Sha256 sha;
  sha.update(unit, size);
  sha.finish(digest, kDigestBytes);
  return std::memcmp(digest, entry + 4, kDigestBytes) == 0 ||
         failure.invalid("a unit is damaged: it has another digest than in index");
}

bool UnitIndex::next_is(char letter, const Text& name) {
  const size_t left = names_size_ - names_read_;
  if (left < name.size + 2) return false;
  const char* at = names_.data() + names_read_;
  names_read_ += name.size + 2;
  return at[0] == letter && std::memcmp(at + 1, name.data, name.size) == 0 &&
         at[1 + name.size] == 0;
}

bool UnitIndex::finish(Failure& failure) const {
  if (!is_present_) return true;
  if (next_ != count_) return failure.set(NNR_TRUNCATED, "units of index are missing at the end");
  return names_read_ == names_size_ || failure.invalid("index has names of no unit");
}

}  // namespace nnr::device
