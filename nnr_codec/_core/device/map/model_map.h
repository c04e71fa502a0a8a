// The model map: what the standard's elements cannot say of a model (spec/model_map.md).
#pragma once

#include "named_tensor.h"
#include "unit_index.h"
#include "json_reader.h"

namespace nnr::device {

// The roles of a block's tensors that `order` can name.
inline constexpr int kOrderRoles = 7;

inline constexpr size_t kDigestSize = 32;  // of a SHA-256

struct ModelMap {
  explicit ModelMap(const nnr_memory& memory) : index(memory), layers(memory) {}

  bool is_present = false;
  bool by_name = false;
  // Place of each role within a unit: kOrderRoles for those that `order` does not name.
  uint8_t role_rank[NNR_BIAS + 1] = {};
  bool has_role_order = false;
  Weight* weights = nullptr;
  Extra* extras = nullptr;
  uint64_t formed_elements = 0;  // of factored weights, and of ties to them
  UnitIndex index;
  bool has_base = false;
  uint8_t base_stream[kDigestSize] = {};  // of an update: digest of the stream before
  // Where another extra goes.
  Extra** last_extra() {
    Extra** last = &extras;
    while (*last) last = &(*last)->next;
    return last;
  }

  uint32_t layer_count = 0;
  Array<uint64_t> layers;  // bytes of each
};

using Names = NameTable<NamedTensor>;

// Whether a text of a topology unit is that of a map.
bool is_model_map(const Text& text);
// Whether a unit of no map begins like one of which a bit was changed.
bool begins_like_map(const uint8_t* unit, size_t size);

// Parses a map. What it says of tensors goes to their entries in `names`.
bool parse_model_map(const Text& text, const nnr_memory& memory, const nnr_limits& limits,
                     Arena& arena, Names& names, ModelMap& map, Failure& failure);

// Checks at the stream's end that the map fits the tensors that were coded.
bool check_model_map(const ModelMap& map, const Names& names, Failure& failure);

}  // namespace nnr::device
