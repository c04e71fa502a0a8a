// How coded tensors come back: the entries of "tensors" in a model map.
#include "decimal.h"
#include "map_values.h"

namespace nnr::device {

namespace {

enum RuleKey {
  kDtype,
  kShape,
  kScale,
  kScales,
  kTable,
  kLow,
  kMantissas,
  kFields,
  kBits,
  kRun,
  kScaleDtype,
  kNegativeZero
};
constexpr const char* kRuleKeys[] = {"dtype", "shape", "scale",       "scales",
                                     "table", "low",   "mantissas",   "fields",
                                     "bits",  "run",   "scale_dtype", "negative_zero"};

constexpr uint32_t bit(RuleKey key) { return 1u << key; }

// The keys that tell a meaning, by precedence, with those that it may have and must have.
struct MeaningKeys {
  RuleKey telling;
  Meaning meaning;
  uint32_t allowed, needed;
};
constexpr MeaningKeys kMeanings[] = {
    {kScale, Meaning::kGrid, bit(kScale) | bit(kNegativeZero), 0},
    {kScales, Meaning::kGroups, bit(kScales) | bit(kRun) | bit(kScaleDtype) | bit(kNegativeZero),
     bit(kRun)},
    {kTable, Meaning::kTable, bit(kTable), 0},
    {kLow, Meaning::kHalves, bit(kLow) | bit(kBits), 0},
    {kMantissas, Meaning::kMantissas, bit(kMantissas) | bit(kBits), bit(kBits)},
    {kFields, Meaning::kFields, bit(kFields), 0},
    {kBits, Meaning::kBits, bit(kBits), 0},
};

constexpr double kLeastScale = 1.17549435082228750796873653722e-38;    // 2^-126
constexpr double kGreatestScale = 3.40282366920938463463374607432e38;  // 2^128

bool read_scale(MapReader& reader, Rule& rule) {
  Text number;
  bool is_whole = false;
  if (!reader.json.read_number(number, is_whole)) return false;
  rule.scale = decimal_value(number);
  return (rule.scale >= kLeastScale && rule.scale < kGreatestScale) ||
         reader.fail("a scale of the model map is out of range");
}

bool read_part(MapReader& reader, NamedTensor& tensor, Rule& rule) {
  if (!reader.read_name(rule.part)) return false;
  if (rule.part == &tensor) return reader.fail("a tensor is a part of itself");
  return true;
}

bool read_scale_type(MapReader& reader, Rule& rule) {
  if (!reader.read_type(rule.scale_type)) return false;
  return rule.scale_type == NNR_FLOAT16 || rule.scale_type == NNR_FLOAT32 ||
         reader.fail("scale_dtype is no type of scales");
}

bool read_value(MapReader& reader, NamedTensor& tensor, Rule& rule, int key) {
  JsonReader& json = reader.json;
  switch (key) {
    case kDtype: rule.has_type = true; return reader.read_type(rule.type);
    case kShape: rule.has_shape = true; return reader.read_shape(rule.shape);
    case kScale: return read_scale(reader, rule);
    case kScales:
    case kTable:
    case kLow:
    case kMantissas: return read_part(reader, tensor, rule);
    case kFields: return json.read_whole(rule.field_bits);
    case kBits: rule.has_bits = true; return json.read_whole(rule.bits);
    case kRun: return json.read_whole(rule.run);
    case kScaleDtype: return read_scale_type(reader, rule);
    case kNegativeZero: rule.has_negative_zero = true; return json.read_whole(rule.negative_zero);
    default: return false;
  }
}

bool find_meaning(MapReader& reader, uint32_t seen, Rule& rule) {
  seen &= ~(bit(kDtype) | bit(kShape));
  if (seen == 0) return true;
  for (const MeaningKeys& keys : kMeanings) {
    if (!(seen & bit(keys.telling))) continue;
    if ((seen & ~keys.allowed) || (seen & keys.needed) != keys.needed) break;
    rule.meaning = keys.meaning;
    return true;
  }
  return reader.fail("keys of a tensor in the model map do not go together");
}

// Bits of a bias: those of a word, of a high half, or of an exponent.
int bias_bits(const Rule& rule) {
  const TypeInfo& info = type_info(rule.type);
  return rule.meaning == Meaning::kMantissas ? info.exponent_bits
         : rule.meaning == Meaning::kHalves  ? 32
                                             : 8 * info.size;
}

bool check_meaning(const Rule& rule) {
  if (rule.meaning == Meaning::kNone) return true;
  if (!rule.has_type || rule.type == NNR_BOOL) return false;
  const TypeInfo& info = type_info(rule.type);
  const bool is_float_type = info.kind == Kind::kFloat, is_wide = info.size == 8;
  const bool has_word = rule.negative_zero >= INT32_MIN && rule.negative_zero <= INT32_MAX;
  switch (rule.meaning) {
    case Meaning::kGrid:
      if (!is_float_type || !has_word) return false;
      break;
    case Meaning::kGroups:
      if (!is_float_type || !has_word || rule.run < 1) return false;
      break;
    case Meaning::kHalves:
      if (!is_wide) return false;
      break;
    case Meaning::kMantissas:
      if (!is_signed_float(rule.type) || is_wide) return false;
      break;
    case Meaning::kFields:
      return !is_float_type && !is_wide && rule.has_shape &&
             (rule.field_bits == 2 || rule.field_bits == 4);
    default:
      if (is_wide) return false;
  }
  return !rule.has_bits || (rule.bits >= 0 && rule.bits < int64_t{1} << bias_bits(rule));
}

}  // namespace

bool read_tensor_rule(MapReader& reader, NamedTensor& tensor) {
  Rule* rule = nullptr;
  if (tensor.rule) return reader.fail("a key of the model map stands twice");
  if (!reader.make(rule) || !reader.json.begin_object()) return false;
  tensor.rule = rule;
  KnownKeys known(kRuleKeys);
  Text key;
  bool is_first = true;
  while (reader.json.next_key(is_first, key)) {
    const int index = known.index_of(key, reader.json);
    if (index < 0 || !read_value(reader, tensor, *rule, index)) return false;
  }
  if (!reader.json.ok() || !find_meaning(reader, known.seen(), *rule)) return false;
  if (!check_meaning(*rule))
    return reader.fail("the model map has a meaning that does not go with its dtype");
  if (!rule->part) return true;
  if (rule->part->owner) return reader.fail("two tensors of the model map have one part");
  rule->part->owner = &tensor;
  return true;
}

}  // namespace nnr::device
