// Reads the values that several parts of a model map have.
#pragma once

#include "json_reader.h"
#include "named_tensor.h"

namespace nnr::device {

using Names = NameTable<NamedTensor>;

struct MapReader {
  JsonReader& json;
  const nnr_limits& limits;
  Arena& arena;
  Names& names;
  Failure& failure;

  bool fail(Reason reason) { return failure.invalid(reason); }
  bool read_type(nnr_type& type);
  bool read_shape(Shape& shape);
  // A name of a tensor; its entry.
  bool read_name(NamedTensor*& tensor);
  bool add_name(const Text& name, NamedTensor*& tensor);
  template <class T>
  bool make(T*& object) {
    object = arena.make<T>();
    return object || failure.no_memory();
  }
};

// Which of up to 16 keys an object has had; refuses those that are unknown or stand twice.
class KnownKeys {
 public:
  template <size_t kCount>
  explicit KnownKeys(const char* const (&keys)[kCount]) : keys_(keys), count_(kCount) {}

  // The index of a key, or -1.
  int index_of(const Text& key, JsonReader& json) {
    for (size_t i = 0; i < count_; ++i) {
      if (!key.equals(keys_[i])) continue;
      if (seen_ >> i & 1) break;
      seen_ |= 1u << i;
      return static_cast<int>(i);
    }
    json.fail("a key of the model map is unknown or stands twice");
    return -1;
  }
  bool has(int index) const { return seen_ >> index & 1; }
  uint32_t seen() const { return seen_; }

 private:
  const char* const* keys_;
  size_t count_;
  uint32_t seen_ = 0;
};

struct ModelMap;

// The entries of a map (map_rules.cpp, map_entries.cpp, map_base.cpp).
bool read_tensor_rule(MapReader& reader, NamedTensor& tensor);
bool read_weight(MapReader& reader, NamedTensor& tensor, Weight*& weight);
bool read_extra(MapReader& reader, Extra*& extra);
bool read_base(MapReader& reader, ModelMap& map);
bool read_layers(MapReader& reader, ModelMap& map);

}  // namespace nnr::device
