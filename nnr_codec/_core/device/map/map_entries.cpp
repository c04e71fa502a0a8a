// Factored weights and tensors without a data unit: entries of a model map.
#include "map_values.h"

namespace nnr::device {

namespace {

constexpr const char* kFormWords[] = {"lr",          "cp",         "tucker2",     "ht2",
                                      "joint_right", "joint_left", "joint_binary"};

enum WeightKey { kForm, kWeightShape, kFactors, kWeightDtype };
constexpr const char* kWeightKeys[] = {"form", "shape", "factors", "dtype"};

enum ExtraKey { kName, kAfter, kTiedTo, kExtraDtype, kExtraShape };
constexpr const char* kExtraKeys[] = {"name", "after", "tied_to", "dtype", "shape"};

bool read_form(MapReader& reader, Form& form) {
  Text word;
  if (!reader.json.read_text(word)) return false;
  for (size_t i = 0; i < sizeof kFormWords / sizeof *kFormWords; ++i) {
    if (!word.equals(kFormWords[i])) continue;
    form = static_cast<Form>(i);
    return true;
  }
  return reader.fail("the model map has an unknown form");
}

bool read_factors(MapReader& reader, Weight& weight) {
  if (!reader.json.begin_array()) return false;
  bool is_first = true;
  while (reader.json.next_item(is_first)) {
    NamedTensor* factor = nullptr;
    if (weight.factor_count == kMaxFactors) return reader.fail("a weight has too many factors");
    if (!reader.read_name(factor)) return false;
    for (int i = 0; i < weight.factor_count; ++i)
      if (weight.factors[i] == factor) return reader.fail("a weight has a factor twice");
    weight.factors[weight.factor_count++] = factor;
    WeightUse* use = nullptr;
    if (!reader.make(use)) return false;
    use->weight = &weight;
    use->next = factor->uses;
    factor->uses = use;
  }
  weight.missing = weight.factor_count;
  return reader.json.ok() &&
         (weight.factor_count > 1 || reader.fail("a weight has too few factors"));
}

bool read_value(MapReader& reader, Weight& weight, int key) {
  switch (key) {
    case kForm: return read_form(reader, weight.form);
    case kWeightShape: return reader.read_shape(weight.shape);
    case kFactors: return read_factors(reader, weight);
    case kWeightDtype: return reader.read_type(weight.type);
    default: return false;
  }
}

bool read_value(MapReader& reader, Extra& extra, int key) {
  switch (key) {
    case kName: return reader.read_name(extra.tensor);
    case kAfter: return reader.read_name(extra.after);
    case kTiedTo: return reader.read_name(extra.tied_to);
    case kExtraDtype: return reader.read_type(extra.type);
    case kExtraShape: return reader.read_shape(extra.shape);
    default: return false;
  }
}

}  // namespace

bool read_weight(MapReader& reader, NamedTensor& tensor, Weight*& weight) {
  if (tensor.weight) return reader.fail("a key of the model map stands twice");
  if (!reader.make(weight) || !reader.json.begin_object()) return false;
  tensor.weight = weight;
  weight->tensor = &tensor;
  KnownKeys known(kWeightKeys);
  Text key;
  bool is_first = true;
  while (reader.json.next_key(is_first, key)) {
    const int index = known.index_of(key, reader.json);
    if (index < 0 || !read_value(reader, *weight, index)) return false;
  }
  if (!reader.json.ok()) return false;
  const bool is_complete = known.has(kForm) && known.has(kWeightShape) && known.has(kFactors);
  if (!is_complete || weight->shape.elements() == 0 || !is_signed_float(weight->type))
    return reader.fail("a factored weight of the model map is not complete, empty, or no float");
  if (weight->shape.elements() > reader.limits.elements_per_tensor)
    return reader.failure.limit("a factored weight has more elements than the limit");
  return true;
}

bool read_extra(MapReader& reader, Extra*& extra) {
  if (!reader.make(extra) || !reader.json.begin_object()) return false;
  KnownKeys known(kExtraKeys);
  Text key;
  bool is_first = true;
  while (reader.json.next_key(is_first, key)) {
    const int index = known.index_of(key, reader.json);
    if (index < 0 || !read_value(reader, *extra, index)) return false;
  }
  if (!reader.json.ok()) return false;
  const bool is_empty = known.has(kExtraDtype) && known.has(kExtraShape);
  const bool has_either = known.has(kExtraDtype) || known.has(kExtraShape);
  if (!known.has(kName) || (extra->tied_to ? has_either : !is_empty))
    return reader.fail("a tensor without a data unit is not complete in the model map");
  if (!extra->tied_to && extra->shape.elements() != 0)
    return reader.fail("a tensor of the model map has no data unit and is not empty");
  if (extra->tensor->extra) return reader.fail("two extras of the model map have one name");
  extra->tensor->extra = extra;
  extra->tensor->is_in_extra = true;
  if (extra->after) extra->after->is_in_extra = true;
  if (extra->tied_to) extra->tied_to->is_in_extra = true;
  if (extra->tied_to) {
    extra->next_tie = extra->tied_to->ties;
    extra->tied_to->ties = extra;
  }
  return true;
}

}  // namespace nnr::device
