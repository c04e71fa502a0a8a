#include "unit_walk.h"

#include <new>

#include "../support/config.h"

namespace nnr::device {

namespace {

enum UnitType : uint8_t {
  kStart,
  kModelParameters,
  kLayerParameters,
  kTopology,
  kQuantizationData,
  kDataUnit,
  kAggregate
};
constexpr uint8_t kFirstPrivate = 32;
constexpr uint64_t kUnitEntries = 16;  // what a unit counts among header entries

}  // namespace

UnitWalk::UnitWalk(const nnr_options& options, UnitSource& source, Failure& failure,
                   uint64_t start, uint64_t size)
    : options_(options),
      memory_(options.memory),
      limits_(options.limits),
      source_(source),
      failure_(failure),
      references_(memory_),
      arena_(memory_),
      names_(memory_, arena_),
      map_(memory_),
      unit_(memory_),
      start_(start),
      size_of_stream_(size) {}

Step UnitWalk::next() {
  if (unit_.payload_start) {  // the data unit before is done with
    unit_.~DataUnit();
    new (&unit_) DataUnit(memory_);
  }
  for (;;) {
    const Step step = read_unit();
    if (step != Step::kDataUnit) return step;
    if (type_ == kDataUnit) return step;
  }
}

// Reads one unit, of any type: kDataUnit says that it is there.
Step UnitWalk::read_unit() {
  if (is_open_) {
    if (NNR_WITH_MAP && NNR_WITH_UPDATES && options_.keep != NNR_KEEP_NOTHING)
      digest_.update(source_.data(), size_);
    source_.pass(size_);
    offset_ += size_;
    ++units_;
    is_open_ = false;
  }
  failure_.begin_unit(static_cast<uint32_t>(units_), start_ + offset_);
  if (NNR_WITH_MAP && offset_ == size_of_stream_) return finish() ? Step::kEnd : Step::kFailed;
  const Supply supply = read_unit_header();
  if (supply == Supply::kNeedInput) return Step::kNeedInput;
  if (supply == Supply::kFailed || failure_.is_set()) return Step::kFailed;
  if (supply == Supply::kEnd) {
    const bool is_at_end =
        source_.held() == 0 && (!NNR_WITH_MAP || size_of_stream_ == UINT64_MAX);
    if (is_at_end) return finish() ? Step::kEnd : Step::kFailed;
    failure_.set(start_ ? NNR_CUT : NNR_TRUNCATED, "the bitstream ends inside a unit or layer");
    return Step::kFailed;
  }
  is_open_ = true;
  return read_content() ? Step::kDataUnit : Step::kFailed;
}

// Makes the unit's bytes available, once its first ones say that it may come.
Supply UnitWalk::read_unit_header() {
  Supply supply = source_.require(2, failure_);
  if (supply != Supply::kThere) return supply;
  const size_t size_bytes = source_.data()[0] & 0x80 ? 4 : 2;
  supply = source_.require(size_bytes, failure_);
  if (supply != Supply::kThere) return supply;
  uint32_t size = source_.data()[0] & 0x7f;
  for (size_t i = 1; i < size_bytes; ++i) size = size << 8 | source_.data()[i];
  if (size < size_bytes + 1) {
    failure_.invalid("a unit is smaller than its own header");
    return Supply::kFailed;
  }
  supply = source_.require(size_bytes + 1, failure_);
  if (supply != Supply::kThere) return supply;
  type_ = source_.data()[size_bytes] >> 2;
  is_partial_ = source_.data()[size_bytes] & 1;
  size_ = size;
  header_size_ = size_bytes + (is_partial_ ? 2 : 1);
  return check_order() ? source_.require(size_, failure_) : Supply::kFailed;
}

bool UnitWalk::check_order() {
  if (size_ < header_size_) return failure_.invalid("a unit is smaller than its own header");
  if ((type_ == kStart) != (units_ == 0))
    return failure_.invalid("NNR_STR must be the first unit alone");
  if (size_ > limits_.unit_bytes) return failure_.limit("a unit has more bytes than the limit");
  if (NNR_WITH_MAP && size_ > size_of_stream_ - offset_)
    return failure_.invalid("a unit reaches beyond its quality layer");
  if (start_ + offset_ + size_ > limits_.stream_bytes) return failure_.limit("more bytes than the limit");
  if (units_ >= limits_.units) return failure_.limit("more units than the limit");
  if (type_ < kFirstPrivate) {
    if (type_ == kAggregate) return failure_.unsupported("aggregate units");
    if (type_ > kAggregate) return failure_.invalid("the unit type is reserved");
    if (is_partial_) return failure_.unsupported("partial data units");
    if (type_ == kModelParameters && parameters_.has_mps)
      return failure_.invalid("a second model parameter set");
    if ((type_ == kLayerParameters || type_ == kDataUnit) && !parameters_.has_mps)
      return failure_.invalid("a unit comes before the model parameter set");
  }
#if NNR_WITH_MAP
  return map_.index.check_size(size_, failure_);
#else
  return true;
#endif
}

bool UnitWalk::read_content() {
  BitReader reader(source_.data(), size_, failure_);
  reader.skip(8 * header_size_);
  Text map_text;
  header_entries_ += kUnitEntries;
  has_private_ = has_private_ || type_ >= kFirstPrivate;
  bool ok = true;
  switch (type_) {
    case kStart: ok = read_start_unit(reader, parameters_); break;
    case kModelParameters: ok = read_model_parameter_set(reader, limits_, parameters_); break;
    case kLayerParameters: ok = read_layer_parameter_set(reader, limits_, parameters_); break;
    case kTopology:
      ok = read_topology_unit(reader, limits_, references_, failure_, map_text, text_bytes_);
      header_entries_ += references_.size();
      break;
    case kQuantizationData: ok = read_quantization_unit(reader, limits_, text_bytes_); break;
    case kDataUnit: ok = read_data_unit_header(reader); break;
    default: break;
  }
  if (!ok) return false;
  if (type_ < kDataUnit && reader.bits_left())
    return reader.invalid("bytes are left behind a unit's content");
  if (text_bytes_ > limits_.topology_bytes)
    return failure_.limit("topology data are longer than the limit");
  if (header_entries_ > limits_.header_entries)
    return failure_.limit("headers are larger than the limit");
#if NNR_WITH_MAP
  const bool had_index = map_.index.is_present();
  if (map_text.data && is_model_map(map_text) && !read_map(map_text)) return false;
  if (type_ != kDataUnit && !map_.is_present && begins_like_map(source_.data(), size_))
    return failure_.invalid("a damaged model map");
  if (had_index)
    return map_.index.check_unit(source_.data(), size_, type_ == kDataUnit ? &unit_ : nullptr,
                                 failure_);
  if (type_ != kDataUnit && !map_.index.is_present()) map_.index.add_to_head(source_.data(), size_);
#endif
  return true;
}

bool UnitWalk::read_data_unit_header(BitReader& reader) {
  if (!is_layer_an_update()) return false;
  if (!read_data_unit(reader, parameters_, limits_, references_, failure_, unit_, header_entries_))
    return false;
  if (unit_.parent_present && !NNR_WITH_UPDATES)
    return failure_.unsupported("updates, in this build");
  if (unit_.is_decomposed_block()) {
    if (!NNR_WITH_DC) return failure_.unsupported("decomposed blocks, in this build");
    if (!count_operations(unit_.rank > limits_.all_product_operations / unit_.elements
                              ? UINT64_MAX
                              : unit_.rank * unit_.elements))
      return false;
  }
  return note_names() && count_elements();
}

EntryPointReader UnitWalk::entry_points() {
  BitReader reader(source_.data(), size_, failure_);
  reader.skip(unit_.entry_points_bit);
  return {reader, unit_.dependent_quantization};
}

bool UnitWalk::count_operations(uint64_t operations) {
  if (operations > limits_.product_operations)
    return failure_.limit("a product takes more work than the limit");
  operations_ += operations;
  return operations_ <= limits_.all_product_operations ||
         failure_.limit("products take more work than the limit");
}

}  // namespace nnr::device
