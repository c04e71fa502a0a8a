// All that is known of a tensor by its name, in one stream.
#pragma once

#include <cstdint>

#include "../support/arena.h"
#include "../support/number_types.h"

namespace nnr::device {

struct NamedTensor;

// What the integers of a tensor stand for (spec/model_map.md, "What integers mean").
enum class Meaning : uint8_t { kNone, kGrid, kGroups, kTable, kHalves, kMantissas, kFields, kBits };

struct Shape {
  uint32_t count = 0;
  uint64_t* dimensions = nullptr;

  uint64_t elements() const {
    uint64_t product = 1;
    for (uint32_t i = 0; i < count; ++i) product *= dimensions[i];
    return product;
  }
};

// How a coded tensor comes back.
struct Rule {
  bool has_type = false, has_shape = false, has_bits = false, has_negative_zero = false;
  nnr_type type = NNR_FLOAT32;
  Shape shape;
  Meaning meaning = Meaning::kNone;
  double scale = 0;
  int64_t bits = 0;  // the bias
  int64_t run = 0;
  int64_t field_bits = 0;
  int64_t negative_zero = 0;  // an integer of 32 bits
  nnr_type scale_type = NNR_FLOAT32;
  NamedTensor* part = nullptr;

  uint64_t integers_per_value() const {
    return meaning != Meaning::kFields
               ? 1
               : uint64_t{8} * type_info(type).size / static_cast<uint64_t>(field_bits);
  }
};

// As nnr_form.
enum class Form : uint8_t { kLowRank, kCp, kTucker2, kHt2, kJointRight, kJointLeft, kJointBinary };

inline constexpr int kMaxFactors = 4;

// A weight that is the product of coded tensors.
struct Weight {
  Weight* next = nullptr;  // in the order of the map
  NamedTensor* tensor = nullptr;
  Form form = Form::kLowRank;
  nnr_type type = NNR_FLOAT32;
  Shape shape;
  int factor_count = 0;
  NamedTensor* factors[kMaxFactors] = {};
  int missing = 0;                    // factors whose headers have not come yet
  const NamedTensor* last = nullptr;  // the factor that came last
};

// That a tensor is a factor.
struct WeightUse {
  WeightUse* next = nullptr;
  Weight* weight = nullptr;
};

// A tensor without a data unit: tied to another one, empty, or no more there.
struct Extra {
  Extra* next = nullptr;      // in the order of the map
  Extra* next_tie = nullptr;  // to the same tensor
  NamedTensor* tensor = nullptr;
  NamedTensor* after = nullptr;
  NamedTensor* tied_to = nullptr;
  nnr_type type = NNR_FLOAT32;
  Shape shape;
  bool is_done = false;  // it was handed out
  bool is_removed = false;  // a tensor of the base that the new model does not have
};

// Elements that are kept for later use: the integers of a part, or a factor.
struct StoredTensor {
  StoredTensor* next = nullptr;
  nnr_type type = NNR_INT32;
  Shape shape;  // as it is coded
  void* data = nullptr;
  size_t bytes = 0;
  uint32_t uses = 0;  // that are still to come
};

struct NamedTensor {
  NamedTensor* chain = nullptr;
  uint32_t hash = 0;
  Text name;                 // ended by a zero
  bool is_coded = false;     // by a unit so far; or the product of a block's factors
  bool is_in_extra = false;  // an extra names it
  bool is_whole = false, changes_bits = false, is_removed = false;  // as `base` has it
  uint64_t position = 0;     // in the model's order, where that is not by name
  const Rule* rule = nullptr;
  NamedTensor* owner = nullptr;  // the tensor whose part it is
  Weight* weight = nullptr;
  WeightUse* uses = nullptr;
  Extra* extra = nullptr;
  Extra* ties = nullptr;  // to it
  Shape coded_shape;      // of a factor
  StoredTensor* stored = nullptr;
  const char* given_as = nullptr;  // the name under which its elements were handed out
};

}  // namespace nnr::device
