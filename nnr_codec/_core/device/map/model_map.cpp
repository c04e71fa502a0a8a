#include "model_map.h"

#include "map_values.h"

namespace nnr::device {

namespace {

constexpr const char kBegin[] = "{\"nnr_model_map\"";
constexpr size_t kBeginSize = sizeof kBegin - 1;
constexpr size_t kMostHeader = 8;  // bytes of a topology unit before its text
constexpr int64_t kNewestVersion = 2;
constexpr uint64_t kMaxMetadata = 65536;

// Keys of version 2 from kIndex on.
enum MapKey {
  kVersion,
  kTensors,
  kExtras,
  kOrder,
  kFactorizations,
  kMetadata,
  kIndex,
  kBase,
  kLayers
};
constexpr const char* kMapKeys[] = {"nnr_model_map", "tensors",        "extras",
                                    "order",         "factorizations", "metadata",
                                    "index",         "base",           "quality_layers"};
// By place, their roles: NNR_WEIGHT, NNR_LOCAL_SCALING, …
constexpr const char* kRoleWords[kOrderRoles] = {"weight", "local_scaling", "beta", "gamma",
                                                 "mean",   "var",           "bias"};

struct MetadataKey {
  MetadataKey* chain = nullptr;
  uint32_t hash = 0;
  Text name;
};

class MapParser {
 public:
  MapParser(MapReader& reader, const nnr_memory& memory, ModelMap& map)
      : reader_(reader), json_(reader.json), memory_(memory), map_(map) {}

  bool parse() {
    KnownKeys known(kMapKeys);
    Text key;
    bool is_first = true;
    if (!json_.begin_object()) return false;
    while (json_.next_key(is_first, key)) {
      const int index = known.index_of(key, json_);
      if (index < 0 || !read_value(index)) return false;
    }
    if (!json_.finish()) return false;
    if (known.seen() >> kIndex && version_ < 2)
      return reader_.fail("a key that this version of the model map does not have");
    if (known.has(kBase) && known.has(kLayers)) return reader_.fail("quality layers of an update");
    return reader_.names.for_each([&](const NamedTensor& tensor) { return check(tensor); });
  }

 private:
  bool read_value(int key) {
    switch (key) {
      case kVersion: return read_version();
      case kTensors: return read_tensors();
      case kExtras: return read_extras();
      case kOrder: return read_order();
      case kFactorizations: return read_weights();
      case kMetadata: return read_metadata();
      case kIndex: return read_index();
      case kBase: return read_base(reader_, map_);
      default: return read_layers(reader_, map_);
    }
  }

  bool read_version() {
    if (!json_.read_whole(version_)) return false;
    return (version_ >= 1 && version_ <= kNewestVersion) ||
           reader_.failure.unsupported("another version of the model map");
  }

  bool read_tensors() {
    Text name;
    bool is_first = true;
    if (!json_.begin_object()) return false;
    while (json_.next_key(is_first, name)) {
      NamedTensor* tensor = nullptr;
      if (!reader_.add_name(name, tensor) || !read_tensor_rule(reader_, *tensor)) return false;
    }
    return json_.ok();
  }

  bool read_weights() {
    Text name;
    bool is_first = true;
    Weight** last = &map_.weights;
    if (!json_.begin_object()) return false;
    while (json_.next_key(is_first, name)) {
      NamedTensor* tensor = nullptr;
      if (!reader_.add_name(name, tensor) || !read_weight(reader_, *tensor, *last)) return false;
      last = &(*last)->next;
    }
    return json_.ok();
  }

  bool read_extras() {
    bool is_first = true;
    Extra** last = map_.last_extra();
    if (!json_.begin_array()) return false;
    while (json_.next_item(is_first)) {
      if (!read_extra(reader_, *last)) return false;
      last = &(*last)->next;
    }
    return json_.ok();
  }

  bool read_order() {
    Text word;
    if (json_.peek() == '"') {
      if (!json_.read_text(word)) return false;
      map_.by_name = word.equals("name");
      return map_.by_name || reader_.fail("an unknown order in the model map");
    }
    if (!json_.begin_array()) return false;
    for (uint8_t& rank : map_.role_rank) rank = kOrderRoles;
    uint8_t next_rank = 0;
    bool is_first = true;
    while (json_.next_item(is_first)) {
      int role = 0;
      if (!json_.read_text(word)) return false;
      while (role < kOrderRoles && !word.equals(kRoleWords[role])) ++role;
      const int place = role == 0 ? NNR_WEIGHT : NNR_LOCAL_SCALING - 1 + role;
      if (role == kOrderRoles || map_.role_rank[place] != kOrderRoles)
        return reader_.fail("order has an unknown role, or one twice");
      map_.role_rank[place] = next_rank++;
    }
    map_.has_role_order = next_rank > 0;
    return json_.ok() && (next_rank > 0 || reader_.fail("an order of no roles"));
  }

  // Checks the text entries of the model's file, which nothing here has a use for.
  bool read_metadata() {
    Arena arena(memory_);
    NameTable<MetadataKey> keys(memory_, arena);
    uint64_t size = 0;
    Text text;
    bool is_first = true;
    if (!json_.begin_object()) return false;
    while (json_.next_key(is_first, text)) {
      size += text.size;
      if (keys.find(text) || text.equals(kMapKeys[kVersion]))
        return reader_.fail("an entry of metadata that must not be there");
      if (!keys.find_or_add(text)) return reader_.failure.no_memory();
      if (!json_.read_text(text)) return false;
      size += text.size;
      if (size > kMaxMetadata) return reader_.fail("metadata are too long");
    }
    return json_.ok();
  }

  bool read_index() {
    Text text;
    return json_.read_text(text) && map_.index.parse(text, reader_.failure);
  }

  // Checks that a tensor has no two meanings.
  bool check(const NamedTensor& tensor) {
    if (tensor.owner && (tensor.rule || tensor.is_in_extra))
      return reader_.fail("a part of the model map is used otherwise");
    if (tensor.weight && (tensor.uses || tensor.rule || tensor.extra || tensor.owner))
      return reader_.fail("a factored weight of the model map is something else as well");
    const Rule* rule = tensor.rule;
    const bool is_real =
        !rule || (!rule->has_shape && (!rule->has_type || is_signed_float(rule->type)));
    if (tensor.uses && (tensor.extra || tensor.owner || !is_real))
      return reader_.fail("a factor of the model map has another meaning");
    if (tensor.weight) {
      uint64_t copies = 1;
      for (const Extra* tie = tensor.ties; tie; tie = tie->next_tie) ++copies;
      map_.formed_elements += copies * tensor.weight->shape.elements();
    }
    return true;
  }

  MapReader& reader_;
  JsonReader& json_;
  const nnr_memory& memory_;
  ModelMap& map_;
  int64_t version_ = 0;
};

// A place in the model's order: of a coded tensor, or behind one for a weight that it completes.
struct Place {
  const NamedTensor* tensor = nullptr;
  bool is_behind = false;
};

class MapCheck {
 public:
  MapCheck(const ModelMap& map, Failure& failure) : map_(map), failure_(failure) {}

  bool check(const NamedTensor& tensor) {
    if (tensor.rule && !tensor.is_coded)
      return failure_.invalid("the model map tells of a tensor that is not there");
    if (tensor.is_removed && (tensor.is_coded || tensor.extra || tensor.weight))
      return failure_.invalid("a tensor that base removes is there");
    const bool is_sum = tensor.is_whole || tensor.changes_bits;
    if (is_sum && (!tensor.is_coded || tensor.owner || (tensor.is_whole && tensor.changes_bits)))
      return failure_.invalid("base tells of a tensor that is not there, or in two ways");
    if (tensor.owner && tensor.owner->is_coded &&
        !(tensor.is_coded && precedes({&tensor, false}, {tensor.owner, false})))
      return failure_.invalid("a part does not come before what it is a part of");
    if (tensor.weight && !check_weight(*tensor.weight)) return false;
    return !tensor.extra || check_extra(*tensor.extra);
  }

 private:
  bool precedes(const Place& a, const Place& b) const {
    if (a.tensor == b.tensor) return !a.is_behind && b.is_behind;
    return map_.by_name ? a.tensor->name.precedes(b.tensor->name)
                        : a.tensor->position < b.tensor->position;
  }

  // Where a tensor or weight stands; no tensor if it is not there.
  Place place_of(const NamedTensor* tensor) const {
    if (tensor->is_coded) return {tensor, false};
    if (!tensor->weight) return {};
    return {last_factor(*tensor->weight), true};
  }

  const NamedTensor* last_factor(const Weight& weight) const {
    const NamedTensor* last = weight.factors[0];
    for (int i = 1; i < weight.factor_count; ++i)
      if (precedes({last, false}, {weight.factors[i], false})) last = weight.factors[i];
    return last;
  }

  bool check_weight(const Weight& weight) {
    if (weight.tensor->is_coded) return failure_.invalid("a factored weight has a data unit");
    for (int i = 0; i < weight.factor_count; ++i)
      if (!weight.factors[i]->is_coded) return failure_.invalid("a factor is missing");
    const NamedTensor* last = last_factor(weight);
    for (const WeightUse* use = last->uses; use; use = use->next) {
      bool is_complete = use->weight != &weight;
      for (int i = 0; i < use->weight->factor_count; ++i)
        is_complete = is_complete && use->weight->factors[i]->is_coded;
      if (is_complete && last_factor(*use->weight) == last)
        return failure_.invalid("two weights have one last factor");
    }
    return true;
  }

  bool check_extra(const Extra& extra) {
    if (place_of(extra.tensor).tensor)
      return failure_.invalid("a tensor has a data unit and is an extra");
    const Place after = extra.after ? place_of(extra.after) : Place{};
    const Place target = extra.tied_to ? place_of(extra.tied_to) : Place{};
    const bool is_wrong = (extra.after && !after.tensor) || (extra.tied_to && !target.tensor) ||
                          (extra.tied_to && !extra.after) ||
                          (extra.tied_to && extra.after && precedes(after, target));
    return !is_wrong || failure_.invalid("an extra refers to tensors that do not precede it");
  }

  const ModelMap& map_;
  Failure& failure_;
};

}  // namespace

bool is_model_map(const Text& text) {
  return text.size >= kBeginSize && std::memcmp(text.data, kBegin, kBeginSize) == 0;
}

bool begins_like_map(const uint8_t* unit, size_t size) {
  for (size_t start = 0; start <= kMostHeader && start + kBeginSize <= size; ++start) {
    int differences = 0;
    for (size_t i = 0; i < kBeginSize; ++i)
      differences += unit[start + i] != static_cast<uint8_t>(kBegin[i]);
    if (differences <= 1) return true;
  }
  return false;
}

bool parse_model_map(const Text& text, const nnr_memory& memory, const nnr_limits& limits,
                     Arena& arena, Names& names, ModelMap& map, Failure& failure) {
  JsonReader json(text, memory, failure);
  MapReader reader{json, limits, arena, names, failure};
  map.is_present = true;
  return MapParser(reader, memory, map).parse();
}

bool check_model_map(const ModelMap& map, const Names& names, Failure& failure) {
  MapCheck check(map, failure);
  return names.for_each([&](const NamedTensor& tensor) { return check.check(tensor); });
}

}  // namespace nnr::device
