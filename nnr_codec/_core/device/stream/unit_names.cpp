// What a unit's tensors mean to the stream by their names, and what the model map says of them.
#include "../support/config.h"
#include "unit_walk.h"

namespace nnr::device {

#if NNR_WITH_MAP

bool UnitWalk::read_map(const Text& text) {
  if (map_.is_present || positions_)
    return failure_.invalid("a model map behind a data unit or another map");
  if (!parse_model_map(text, memory_, limits_, arena_, names_, map_, failure_)) return false;
  if (map_.index.is_present() && !map_.index.begin(source_.data(), size_, failure_)) return false;
  return map_.has_base ? check_base() : map_.layer_count == 0 || begin_layers();
}

// Checks that the series ends with the stream that this one updates.
bool UnitWalk::check_base() {
#if NNR_WITH_UPDATES
  if (options_.is_parent) return true;
  const Series* series = reinterpret_cast<const Series*>(options_.series);
  if (!series || !series->has_digest)
    return failure_.set(NNR_MISSING_PARENT, "an update without its base");
  return std::memcmp(series->digest, map_.base_stream, kDigestSize) == 0 ||
         failure_.set(NNR_MISSING_PARENT, "an update of another bitstream");
#else
  return failure_.unsupported("updates, in this build");
#endif
}

bool UnitWalk::begin_layers() {
  if (start_) return failure_.invalid("quality layers within a quality layer");
  if (has_private_) return failure_.invalid("a private unit before the map with quality layers");
  size_of_stream_ = map_.layers[0];
  return offset_ + size_ <= size_of_stream_ ||
         failure_.invalid("a unit reaches beyond its quality layer");
}

#endif

bool UnitWalk::note_names() {
  UnitTensor tensors[kMaxUnitTensors];
  const int count = unit_.tensors_by_name(tensors);
  const bool has_product = unit_.is_decomposed_block();
  const uint64_t first = positions_;
  NamedTensor* least = nullptr;
  for (int i = 0; i < count; ++i)
    if (!note_name(tensors[i].name, tensors[i].role, least)) return false;
  if (has_product && !note_name(unit_.product_name(), NNR_PRODUCT, least)) return false;
#if NNR_WITH_MAP
  if (map_.by_name) {
    if (least_name_ && least->name.precedes(least_name_->name))
      return failure_.invalid("the units are not ordered by name");
    least_name_ = least;
  } else if (map_.has_role_order) {  // each one's rank, times the tensors that a unit can have
    for (int i = 0; i < count; ++i)
      names_.find(tensors[i].name)->position +=
          uint64_t{map_.role_rank[tensors[i].role]} * (kMaxUnitTensors + 1);
    if (has_product)
      names_.find(unit_.product_name())->position += uint64_t{kOrderRoles} * (kMaxUnitTensors + 1);
  }
#endif
  positions_ = first + uint64_t{kOrderRoles + 1} * (kMaxUnitTensors + 1);
  return true;
}

bool UnitWalk::note_name(const Text& name, nnr_role role, NamedTensor*& least) {
  NamedTensor* tensor = names_.find_or_add(name);
  if (!tensor) return failure_.no_memory();
  if (tensor->is_coded) return failure_.invalid("a name stands twice in the bitstream");
  tensor->is_coded = true;
  tensor->position = positions_++;
  if (!least || tensor->name.precedes(least->name)) least = tensor;
#if NNR_WITH_MAP
  if (tensor->weight) return failure_.invalid("a factored weight has a data unit");
  return !tensor->uses || note_factor(*tensor, role);
#else
  (void)role;
  return true;
#endif
}

#if NNR_WITH_MAP

// Notes the shape of a factor; with the last one of a weight, all of them are compared.
bool UnitWalk::note_factor(NamedTensor& tensor, nnr_role role) {
  const bool has_meaning = tensor.rule && tensor.rule->meaning != Meaning::kNone;
  if (role != NNR_WEIGHT || (unit_.payload_type == kInt && !has_meaning))
    return failure_.invalid("a factor is no weight of floats");
  UnitTensor tensors[kMaxUnitTensors];
  unit_.tensors_by_name(tensors);
  Shape& shape = tensor.coded_shape;
  const bool is_separate = unit_.is_separate_factor();
  shape.count = is_separate ? 2 : unit_.dimension_count;
  shape.dimensions = arena_.make_array<uint64_t>(shape.count);
  if (!shape.dimensions) return failure_.no_memory();
  for (uint32_t i = 0; i < shape.count; ++i)
    shape.dimensions[i] = !is_separate ? unit_.dimensions[i]
                          : i == 0     ? tensors[0].rows
                                       : tensors[0].cols;
  for (WeightUse* use = tensor.uses; use; use = use->next)
    if (--use->weight->missing == 0 && !complete_weight(*use->weight, tensor)) return false;
  return true;
}

bool UnitWalk::complete_weight(Weight& weight, const NamedTensor& last) {
  weight.last = &last;
  uint64_t operations = 0;
  return check_factors(weight, operations, failure_) && count_operations(operations);
}

#endif

// Counts the elements of the unit, as often as there are tensors with them.
bool UnitWalk::count_elements() {
  UnitTensor tensors[kMaxUnitTensors];
  const int count = unit_.tensors_by_name(tensors);
  const bool has_product = unit_.is_decomposed_block();
  uint64_t elements = has_product ? unit_.elements : 0, copies = 1;
  for (int i = 0; i < count; ++i) elements += tensors[i].elements();
#if NNR_WITH_MAP
  for (int i = 0; i < count; ++i) copies += ties_to(tensors[i].name);
  if (has_product) copies += ties_to(unit_.product_name());
#endif
  if (elements > limits_.elements / copies) return failure_.limit("more elements than the limit");
  elements_ += elements * copies;
  return elements_ + map_.formed_elements <= limits_.elements ||
         failure_.limit("more elements than the limit");
}

#if NNR_WITH_MAP

uint64_t UnitWalk::ties_to(const Text& name) const {
  uint64_t ties = 0;
  for (const Extra* tie = names_.find(name)->ties; tie; tie = tie->next_tie) ++ties;
  return ties;
}

#endif

// From the second one on, quality layers are updates.
bool UnitWalk::is_layer_an_update() {
  return !NNR_WITH_MAP || start_ == 0 || map_.has_base ||
         failure_.invalid("a quality layer that is no update");
}

bool UnitWalk::finish() {
  if (!is_layer_an_update()) return false;
  if (units_ == 0) return failure_.set(NNR_TRUNCATED, "the bitstream is empty");
#if NNR_WITH_MAP
  if (!map_.index.finish(failure_)) return false;
  if (map_.is_present && !check_model_map(map_, names_, failure_)) return false;
#if NNR_WITH_UPDATES
  if (options_.keep != NNR_KEEP_NOTHING && options_.series) {
    Series* series = reinterpret_cast<Series*>(options_.series);
    digest_.finish(series->digest, sizeof series->digest);
    series->has_digest = true;
  }
#endif
#endif
  return true;
}

}  // namespace nnr::device
