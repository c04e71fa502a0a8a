// The decoder behind the C interface: tensors of the units, products, and what has no data unit.
#pragma once

#include "../tensors/coded_tensor.h"
#include "../tensors/values.h"
#include "unit_walk.h"

namespace nnr::device {

class Decoder {
 public:
  explicit Decoder(const nnr_options& options);
  ~Decoder();

  UnitSource& source() { return source_; }
  const nnr_error& error() const { return failure_.error(); }

  nnr_status next_tensor(nnr_tensor& tensor);
  nnr_status next_layer();
  uint32_t quality_layers(const uint64_t** sizes);
  bool is_update() const { return walk_.is_update(); }
  bool factored_weight(uint32_t index, nnr_weight& described) const;
  nnr_status read(nnr_type type, void* elements, uint64_t count);
  nnr_status add(nnr_type type, void* elements, uint64_t count);

 private:
  // What the elements that can be read now come from.
  enum class From : uint8_t { kNothing, kCodeword, kPayload, kStored, kStoredFloats, kProduct };
  static constexpr size_t kPiece = 128;            // integers that are converted at a time
  static constexpr uint64_t kUncancelled = 65536;  // elements between questions

  nnr_status status() const { return failure_.error().status; }
  bool ask_whether_cancelled();
  // Whether the integers that are decoded now stay in the series.
  bool keeps() const;

  // Tensors (decoder.cpp).
  bool finish_current();
  bool begin_unit();
  bool begin_tensor(nnr_tensor& tensor, bool& is_given);
  bool begin_codeword_tensor(const UnitTensor& unit_tensor, int index);
  bool next_product(nnr_tensor& tensor, bool& is_given);
  bool begin_block_product(nnr_tensor& tensor);
  bool begin_weight(Weight& weight, nnr_tensor& tensor);
  bool next_extra(nnr_tensor& tensor, bool& is_given);
  void give(NamedTensor& named, bool is_selected, nnr_role role, nnr_tensor& tensor);
  void describe_shape(const Rule* rule, const UnitTensor* unit_tensor, nnr_tensor& tensor);
  bool is_dense() const { return options_.layers == NNR_DENSE; }
  // Whether a product is to be formed: a tie to one is its elements.
  bool forms(const NamedTensor& product) const { return is_dense() || product.ties; }

  // Elements that are kept for later (stored.cpp).
  uint32_t uses_of(const NamedTensor& named) const;
  uint32_t block_uses() const;
  bool store(NamedTensor& named, const UnitTensor& unit_tensor, bool as_floats, uint32_t uses);
  StoredTensor* make_stored(const UnitTensor& unit_tensor);
  void release_used();
  void release(StoredTensor& stored);
  void release_all();

  // Reading (reading.cpp).
  nnr_status take(nnr_type type, void* elements, uint64_t count, bool is_sum);
  bool accepts(nnr_type type) const;
  bool accepts_sum(nnr_type type) const;
  bool read_piece(nnr_type type, uint8_t* elements, uint64_t count);
  bool add_piece(nnr_type type, uint8_t* elements, uint64_t count);
  bool read_native(uint8_t* elements, uint64_t first, size_t count);
  bool read_integers(int32_t* integers, uint64_t count);
  // Elements that can be read at a time: each is made of some integers.
  size_t most_at_once() const { return kPiece / static_cast<size_t>(values_.integers_per_value()); }

  nnr_options options_;
  Failure failure_;
  UnitSource source_;
  UnitWalk walk_;
  CodedTensor coded_;
  Values values_;
#if NNR_WITH_DC
  Product product_;
#endif
  ArithmeticDecoder arithmetic_;
  EntryPointReader entries_;
  // The data unit, and how far its tensors are.
  UnitTensor tensors_[kMaxUnitTensors];
  const SeriesTensor* bases_[kMaxUnitTensors] = {};
  int tensor_count_ = 0, next_tensor_ = 0;
  bool has_block_product_ = false;    // which is still to come
  WeightUse* next_weight_ = nullptr;  // weights that the tensor before may complete
  const NamedTensor* last_coded_ = nullptr;
  Extra* next_extra_ = nullptr;
  bool is_at_extras_ = false, is_ended_ = false;
#if NNR_WITH_MAP
  // Of a file with quality layers, from the second on.
  Array<uint64_t> layers_;
  uint32_t layer_count_ = 0, layer_ = 0;
#endif
  // What can be read.
  From from_ = From::kNothing;
  nnr_change change_ = NNR_VALUES;
  uint64_t elements_ = 0, read_ = 0;
  const StoredTensor* read_from_ = nullptr;
  NamedTensor* used_[kMaxFactors] = {};  // stored tensors that it is made of
  uint64_t dimensions_[2] = {};          // of a factor or a vector
  StoredTensor* stored_ = nullptr;       // all of them
};

}  // namespace nnr::device
