// The table of contents that a model map can have (spec/model_map.md, "The table of contents").
#pragma once

#include "../headers/data_unit.h"
#include "../support/failure.h"
#include "../support/memory.h"
#include "../support/sha256.h"

namespace nnr::device {

class UnitIndex {
 public:
  explicit UnitIndex(const nnr_memory& memory) : table_(memory), names_(memory) {}

  bool is_present() const { return is_present_; }

  // Reads the table from its text, which stays where it is until `begin`.
  bool parse(const Text& text, Failure& failure);
  // Notes a unit before the table.
  void add_to_head(const uint8_t* unit, size_t size) { head_.update(unit, size); }
  // Checks the head of the stream, which ends with the topology unit that has the table.
  bool begin(const uint8_t* unit, size_t size, Failure& failure);
  // Compares a unit behind it: its size alone, as soon as that is known; then all of it.
  // `data_unit` is null for other units.
  bool check_size(uint64_t size, Failure& failure) const;
  bool check_unit(const uint8_t* unit, size_t size, const DataUnit* data_unit, Failure& failure);
  // Checks at the stream's end that all units were there.
  bool finish(Failure& failure) const;

 private:
  static constexpr size_t kDigestBytes = 16, kEntryBytes = 4 + kDigestBytes;
  static constexpr size_t kHeadBytes = kDigestBytes + 4;

  bool next_is(char letter, const Text& name);

  bool is_present_ = false;
  Text text_;
  Array<uint8_t> table_;  // as the text has it, without the names
  Array<char> names_;
  size_t names_size_ = 0, names_read_ = 0;
  uint32_t count_ = 0, next_ = 0;  // units, and those that were compared
  Sha256 head_;
};

}  // namespace nnr::device
