// What a model map says of other bitstreams: the base of an update, and quality layers.
#include "map_values.h"
#include "model_map.h"

namespace nnr::device {

namespace {

constexpr uint32_t kMaxLayers = 255, kUsualLayers = 4;
constexpr int64_t kMaxSize = int64_t{1} << 40;

enum BaseKey { kStream, kDigest, kWhole, kXor, kRemoved, kOrder };
constexpr const char* kBaseKeys[] = {"stream", "digest", "whole", "xor", "removed", "order"};

bool read_digest(MapReader& reader, uint8_t* digest) {
  Text text;
  if (!reader.json.read_text(text)) return false;
  bool is_digest = text.size == 2 * kDigestSize;
  for (size_t i = 0; is_digest && i < text.size; ++i) {
    const char c = text.data[i];
    const bool is_letter = c >= 'a' && c <= 'f';
    is_digest = is_letter || (c >= '0' && c <= '9');
    const int value = (is_letter ? c - 'a' + 10 : c - '0') & 15;
    digest[i / 2] = static_cast<uint8_t>(i % 2 ? digest[i / 2] | value : value << 4);
  }
  return is_digest || reader.fail("a digest of the model map is none");
}

// Reads names of tensors; `mark` becomes true of each.
bool read_names(MapReader& reader, bool NamedTensor::*mark, Extra** removed) {
  bool is_first = true, is_empty = true;
  if (!reader.json.begin_array()) return false;
  while (reader.json.next_item(is_first)) {
    NamedTensor* tensor = nullptr;
    if (!reader.read_name(tensor)) return false;
    if (tensor->*mark) return reader.fail("base has a name twice");
    tensor->*mark = true;
    is_empty = false;
    if (!removed) continue;
    if (!reader.make(*removed)) return false;
    (*removed)->tensor = tensor;
    (*removed)->is_removed = true;
    removed = &(*removed)->next;
  }
  return reader.json.ok() && (!is_empty || reader.fail("base has an empty list"));
}

// Reads the order of the new model, which nothing here has a use for.
bool read_runs(MapReader& reader) {
  bool is_first = true, is_empty = true;
  if (!reader.json.begin_array()) return false;
  while (reader.json.next_item(is_first)) {
    bool is_first_number = true;
    int64_t number = 0;
    int count = 0;
    if (!reader.json.begin_array()) return false;
    for (; reader.json.next_item(is_first_number); ++count)
      if (!reader.json.read_whole(number) || number < 0)
        return reader.fail("base has a damaged order");
    if (count != 2 || number == 0) return reader.fail("base has a damaged order");
    is_empty = false;
  }
  return reader.json.ok() && (!is_empty || reader.fail("base has an empty list"));
}

bool read_value(MapReader& reader, ModelMap& map, int key) {
  uint8_t unused[kDigestSize];
  switch (key) {
    case kStream: return read_digest(reader, map.base_stream);
    case kDigest: return read_digest(reader, unused);
    case kWhole: return read_names(reader, &NamedTensor::is_whole, nullptr);
    case kXor: return read_names(reader, &NamedTensor::changes_bits, nullptr);
    case kRemoved: return read_names(reader, &NamedTensor::is_removed, map.last_extra());
    default: return read_runs(reader);
  }
}

}  // namespace

bool read_base(MapReader& reader, ModelMap& map) {
  KnownKeys known(kBaseKeys);
  Text key;
  bool is_first = true;
  map.has_base = true;
  if (!reader.json.begin_object()) return false;
  while (reader.json.next_key(is_first, key)) {
    const int index = known.index_of(key, reader.json);
    if (index < 0 || !read_value(reader, map, index)) return false;
  }
  const bool is_complete = known.has(kStream) && known.has(kDigest);
  return reader.json.ok() && (is_complete || reader.fail("base is not complete"));
}

bool read_layers(MapReader& reader, ModelMap& map) {
  bool is_first = true;
  if (!reader.json.begin_array()) return false;
  while (reader.json.next_item(is_first)) {
    int64_t size = 0;
    if (map.layer_count == kMaxLayers) return reader.fail("too many quality layers");
    if (!reader.json.read_whole(size)) return false;
    if (size <= 0 || size >= kMaxSize) return reader.fail("a quality layer has no such size");
    const uint32_t count = map.layer_count;
    if (count == map.layers.size() && !map.layers.grow(2 * count + kUsualLayers, count))
      return reader.failure.no_memory();
    map.layers[map.layer_count++] = static_cast<uint64_t>(size);
  }
  return reader.json.ok() && (map.layer_count > 1 || reader.fail("too few quality layers"));
}

}  // namespace nnr::device
