// Goes from unit to unit of a bitstream: reads their headers, and checks what they say together.
#pragma once

#include "../headers/data_unit.h"
#include "../map/model_map.h"
#include "../support/sha256.h"
#include "../tensors/forms.h"
#include "../tensors/series.h"
#include "unit_source.h"

namespace nnr::device {

enum class Step { kDataUnit, kEnd, kNeedInput, kFailed };

class UnitWalk {
 public:
  // `start`, `size`: where in the source the bitstream begins, and its bytes, UINT64_MAX if its end
  // is that of the source.
  UnitWalk(const nnr_options& options, UnitSource& source, Failure& failure, uint64_t start,
           uint64_t size);

  // Goes on to the next data unit, whose header is valid then, and whose tensors have entries in
  // the table of names. At the end all was checked that concerns the whole.
  Step next();

  const Parameters& parameters() const { return parameters_; }
  const DataUnit& unit() const { return unit_; }
  const uint8_t* payload() const { return source_.data() + unit_.payload_start; }
  size_t payload_size() const { return size_ - unit_.payload_start; }
  // The entry points of the unit.
  EntryPointReader entry_points();
  NamedTensor* find(const Text& name) const { return names_.find(name); }
  Extra* extras() const { return map_.extras; }
  const Weight* weights() const { return map_.weights; }
  bool is_update() const { return NNR_WITH_MAP && map_.has_base; }
  uint64_t end() const { return start_ + offset_; }
  // Quality layers of which this is the first one; 0 if there are none.
  uint32_t layer_count() const { return map_.layer_count; }
  Array<uint64_t>& layers() { return map_.layers; }
  Arena& arena() { return arena_; }

 private:
  Step read_unit();
  Supply read_unit_header();
  bool check_order();
  bool read_content();
  bool read_map(const Text& text);
  bool read_data_unit_header(BitReader& reader);
  bool note_names();
  bool note_name(const Text& name, nnr_role role, NamedTensor*& least);
  bool note_factor(NamedTensor& tensor, nnr_role role);
  bool complete_weight(Weight& weight, const NamedTensor& last);
  bool count_operations(uint64_t operations);
  bool count_elements();
  uint64_t ties_to(const Text& name) const;
  bool is_layer_an_update();
  bool check_base();
  bool begin_layers();
  bool finish();

  const nnr_options& options_;
  const nnr_memory& memory_;
  const nnr_limits& limits_;
  UnitSource& source_;
  Failure& failure_;
  Parameters parameters_;
  ReferenceList references_;
  Arena arena_;
  Names names_;
  ModelMap map_;
  DataUnit unit_;
  // The unit that is being read.
  bool is_open_ = false;
  size_t size_ = 0, header_size_ = 0;
  uint8_t type_ = 0;
  bool is_partial_ = false;
  bool has_private_ = false;  // there was a private unit
  // Of the stream.
  uint64_t start_, size_of_stream_;
  uint64_t units_ = 0, offset_ = 0;
  Sha256 digest_;
  uint64_t header_entries_ = 0, text_bytes_ = 0;
  uint64_t elements_ = 0, operations_ = 0;
  uint64_t positions_ = 0;
  const NamedTensor* least_name_ = nullptr;  // of the data unit before
};

}  // namespace nnr::device
