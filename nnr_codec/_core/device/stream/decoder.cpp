#include "decoder.h"

#include <new>

namespace nnr::device {

Decoder::Decoder(const nnr_options& options)
    : options_(options),
      source_(options_.memory),
      walk_(options_, source_, failure_, 0, UINT64_MAX),
      coded_(options_.memory)
#if NNR_WITH_DC
      ,
      product_(options_.memory)
#endif
#if NNR_WITH_MAP
      ,
      layers_(options_.memory)
#endif
{
}

bool Decoder::ask_whether_cancelled() {
  const bool is_cancelled = options_.is_cancelled && options_.is_cancelled(options_.cancel_context);
  return !is_cancelled || failure_.set(NNR_CANCELLED, "cancelled by the caller");
}

nnr_status Decoder::next_tensor(nnr_tensor& tensor) {
  bool is_given = false;
  if (failure_.is_set()) return status();
  while (!is_given && !is_ended_) {
    if (!ask_whether_cancelled() || !finish_current()) return status();
    bool ok = next_product(tensor, is_given);
    if (!ok || is_given) {
      // An error, or a product.
    } else if (next_tensor_ < tensor_count_) {
      ok = begin_tensor(tensor, is_given);
    } else if (is_at_extras_) {
      ok = next_extra(tensor, is_given);
      is_ended_ = !is_given;
    } else {
      const Step step = walk_.next();
      if (step == Step::kNeedInput) return NNR_NEED_INPUT;
      ok = step == Step::kDataUnit ? begin_unit() : step == Step::kEnd;
      is_at_extras_ = step == Step::kEnd;
      next_extra_ = walk_.extras();
    }
    if (!ok) return status();
  }
  return is_given ? NNR_OK : NNR_END;
}

uint32_t Decoder::quality_layers(const uint64_t** sizes) {
  *sizes = nullptr;
#if NNR_WITH_MAP
  *sizes = layer_count_ ? layers_.data() : walk_.layers().data();
  const uint32_t count = layer_count_ ? layer_count_ : walk_.layer_count();
  if (count) return count;
#endif
  return 1;
}

bool Decoder::factored_weight(uint32_t index, nnr_weight& described) const {
#if NNR_WITH_MAP
  const Weight* weight = walk_.weights();
  while (weight && index--) weight = weight->next;
  if (!weight) return false;
  described = {};
  described.name = weight->tensor->name.data;
  described.form = static_cast<nnr_form>(weight->form);
  described.type = weight->type;
  described.dimension_count = weight->shape.count;
  described.dimensions = weight->shape.dimensions;
  described.factor_count = static_cast<uint32_t>(weight->factor_count);
  for (int i = 0; i < weight->factor_count; ++i)
    described.factors[i] = weight->factors[i]->name.data;
  return true;
#else
  return (void)index, (void)described, false;
#endif
}

nnr_status Decoder::next_layer() {
  if (failure_.is_set()) return status();
  if (!is_ended_) return NNR_USAGE;
#if NNR_WITH_MAP
  if (layer_count_ == 0) {
    layer_count_ = walk_.layer_count();
    layers_.move_from(walk_.layers());
  }
  if (layer_ + 1 < layer_count_) {
    const uint64_t start = walk_.end();
    release_all();
    walk_.~UnitWalk();
    new (&walk_) UnitWalk(options_, source_, failure_, start, layers_[++layer_]);
    last_coded_ = nullptr;
    next_extra_ = nullptr;
    is_at_extras_ = is_ended_ = false;
    return NNR_OK;
  }
  if (layer_count_ > 0) {
    const Supply supply = source_.require(1, failure_);
    if (supply == Supply::kThere) failure_.invalid("bytes behind the last quality layer");
    if (supply == Supply::kNeedInput) return NNR_NEED_INPUT;
    if (failure_.is_set()) return status();
  }
#endif
  return NNR_END;
}

// Passes over what was not read, as far as what follows needs it, and releases what was needed.
bool Decoder::finish_current() {
  if (from_ == From::kCodeword && (next_tensor_ < tensor_count_ || coded_.keeps())) {
    uint64_t elements[kPiece];
    const uint64_t most = most_at_once();
    for (uint64_t since_asked = 0; read_ < elements_;) {
      const uint64_t count = elements_ - read_ < most ? elements_ - read_ : most;
      if (!read_native(reinterpret_cast<uint8_t*>(elements), read_, static_cast<size_t>(count)))
        return false;
      read_ += count;
      since_asked += count;
      if (since_asked >= kUncancelled && !ask_whether_cancelled()) return false;
      since_asked %= kUncancelled;
    }
  }
  from_ = From::kNothing;
#if NNR_WITH_DC
  release_used();
#endif
  return true;
}

bool Decoder::begin_unit() {
  const DataUnit& unit = walk_.unit();
  tensor_count_ = unit.tensors_by_codeword(tensors_);
  next_tensor_ = 0;
  has_block_product_ = unit.is_decomposed_block();
  entries_ = walk_.entry_points();
  if (unit.payload_type != kRawFloat)
    arithmetic_ = ArithmeticDecoder(walk_.payload(), walk_.payload_size());
  for (int i = 0; i < tensor_count_; ++i) {
    bases_[i] = nullptr;
#if NNR_WITH_UPDATES
    const Series* series = reinterpret_cast<const Series*>(options_.series);
    if (unit.parent_present && series) bases_[i] = series->find(tensors_[i].name);
    if (bases_[i] && bases_[i]->elements != tensors_[i].elements())
      return failure_.invalid("a tensor has another size in an earlier bitstream");
    if (unit.temporal_contexts && !bases_[i])
      return failure_.set(NNR_MISSING_PARENT, "the tensor is in no earlier bitstream");
#endif
  }
  return true;
}

bool Decoder::begin_tensor(nnr_tensor& tensor, bool& is_given) {
  const int index = next_tensor_++;
  const UnitTensor& unit_tensor = tensors_[index];
  const DataUnit& unit = walk_.unit();
  NamedTensor& named = *walk_.find(unit_tensor.name);
  NamedTensor* part = NNR_WITH_MAP && named.rule ? named.rule->part : nullptr;
  StoredTensor* stored_part = part ? part->stored : nullptr;
  used_[0] = stored_part ? part : nullptr;
  if (!values_.start(unit, unit_tensor, named.rule, stored_part, failure_)) return false;
  if (unit.payload_type != kRawFloat && !begin_codeword_tensor(unit_tensor, index)) return false;
  from_ = unit.payload_type == kRawFloat ? From::kPayload : From::kCodeword;
  read_ = 0;
  elements_ = unit_tensor.elements() / values_.integers_per_value();
  last_coded_ = &named;
  next_weight_ = named.uses;
  change_ = !walk_.is_update() || named.is_whole ? NNR_VALUES
            : named.changes_bits                 ? NNR_CHANGED_BITS
                                                 : NNR_ADDED;
  bool is_selected = true;
  is_given = true;
#if NNR_WITH_DC
  const bool is_block_factor = unit_tensor.role == NNR_FACTOR_G || unit_tensor.role == NNR_FACTOR_H;
  is_selected = !is_dense() || !(is_block_factor || named.uses);
  is_given = !named.owner && (is_selected || named.ties);
  const uint32_t uses = named.owner ? 1 : is_block_factor ? block_uses() : uses_of(named);
  if (uses && !store(named, unit_tensor, is_block_factor, uses)) return false;
  if (!is_given) return true;
#endif
  describe_shape(named.rule, &unit_tensor, tensor);
  give(named, is_selected, unit_tensor.role, tensor);
  return true;
}

bool Decoder::keeps() const {
  if (!options_.series || options_.keep != NNR_KEEP_FOR_LAYERS)
    return options_.series && options_.keep == NNR_KEEP;
#if NNR_WITH_MAP
  return layer_ + 1 < (layer_count_ ? layer_count_ : walk_.layer_count());
#else
  return false;
#endif
}

bool Decoder::begin_codeword_tensor(const UnitTensor& unit_tensor, int index) {
  const DataUnit& unit = walk_.unit();
  const Quantization& quantization = walk_.parameters().current;
  if (unit.payload_type != kInt) {
    const int32_t delta = read_qp_delta(arithmetic_, 6 + quantization.density);
    const int64_t qp = int64_t{quantization.parameter} + delta;
    if (!values_.set_step(qp, quantization.density, failure_)) return false;
  }
  CodingContext context;
  context.decoder = &arithmetic_;
  context.entries = &entries_;
  context.is_second_edition = walk_.parameters().profile == 1;
  context.base = bases_[index];
#if NNR_WITH_UPDATES
  if (keeps()) {
    Series* series = reinterpret_cast<Series*>(options_.series);
    context.kept = series->room_for(unit_tensor.name, unit_tensor.elements());
    if (!context.kept) return failure_.no_memory();
  }
#endif
  if (!coded_.start(context, unit, unit_tensor, failure_)) return false;
  if (!coded_.has_history()) return true;
  for (int i = 0; i < tensor_count_; ++i)
    if (!bases_[i]) return failure_.set(NNR_MISSING_PARENT, "a tensor is in no earlier bitstream");
  return true;
}

bool Decoder::next_product(nnr_tensor& tensor, bool& is_given) {
#if NNR_WITH_MAP
  while (next_weight_) {
    Weight& weight = *next_weight_->weight;
    next_weight_ = next_weight_->next;
    const bool is_complete = weight.missing == 0 && weight.last == last_coded_;
    if (!is_complete || !forms(*weight.tensor)) continue;
    is_given = true;
    return begin_weight(weight, tensor);
  }
#endif
#if NNR_WITH_DC
  if (has_block_product_ && next_tensor_ == tensor_count_) {
    has_block_product_ = false;
    if (!forms(*walk_.find(walk_.unit().product_name()))) return true;
    is_given = true;
    return begin_block_product(tensor);
  }
#endif
  (void)tensor, (void)is_given;
  return true;
}

#if NNR_WITH_DC

bool Decoder::begin_block_product(nnr_tensor& tensor) {
  if (walk_.is_update()) return failure_.unsupported("products of an update: take its factors");
  const DataUnit& unit = walk_.unit();
  NamedTensor& named = *walk_.find(unit.product_name());
  if (!NNR_WITH_FLOATS) return failure_.unsupported("products of factors, in this build");
  if (!values_.start_product(unit, named.rule, failure_)) return false;
  product_.start(*walk_.find(unit.names[0])->stored, *walk_.find(unit.names[1])->stored);
  used_[0] = walk_.find(unit.names[0]);
  used_[1] = walk_.find(unit.names[1]);
  from_ = From::kProduct;
  read_ = 0;
  elements_ = unit.elements;
  describe_shape(named.rule, nullptr, tensor);
  give(named, is_dense(), NNR_PRODUCT, tensor);
  return true;
}

#endif

#if NNR_WITH_MAP

bool Decoder::begin_weight(Weight& weight, nnr_tensor& tensor) {
  if (walk_.is_update()) return failure_.unsupported("products of an update: take its factors");
  if (!product_.start(weight, failure_)) return false;
  values_.start_weight(weight.type);
  for (int i = 0; i < weight.factor_count; ++i) used_[i] = weight.factors[i];
  from_ = From::kProduct;
  read_ = 0;
  elements_ = weight.shape.elements();
  tensor.dimension_count = weight.shape.count;
  tensor.dimensions = weight.shape.dimensions;
  give(*weight.tensor, is_dense(), NNR_PRODUCT, tensor);
  return true;
}

#endif

bool Decoder::next_extra(nnr_tensor& tensor, bool& is_given) {
#if NNR_WITH_MAP
  while (next_extra_ && next_extra_->is_done) next_extra_ = next_extra_->next;
  if (!next_extra_) return true;
  const Extra& extra = *next_extra_;
  next_extra_ = extra.next;
  is_given = true;
  tensor = {};
  tensor.name = extra.tensor->name.data;
  tensor.role = extra.is_removed ? NNR_REMOVED : extra.tied_to ? NNR_TIED : NNR_EMPTY;
  tensor.type = extra.type;
  tensor.dimension_count = extra.shape.count;
  tensor.dimensions = extra.shape.dimensions;
  tensor.tied_to = extra.tied_to ? extra.tied_to->given_as : nullptr;
#else
  (void)tensor, (void)is_given;
#endif
  return true;
}

// Names the tensor, of which the shape is described: not selected ones as the first one tied to it.
void Decoder::give(NamedTensor& named, bool is_selected, nnr_role role, nnr_tensor& tensor) {
  const Text& name = is_selected || !NNR_WITH_MAP ? named.name : named.ties->tensor->name;
  if (NNR_WITH_MAP && !is_selected) named.ties->is_done = true;
  named.given_as = name.data;
  tensor.name = name.data;
  tensor.role = role;
  tensor.type = values_.type();
  tensor.elements = elements_;
  tensor.step = from_ == From::kCodeword ? values_.step() : 0.0f;
  tensor.row_elements = tensor.dimension_count ? elements_ / tensor.dimensions[0] : 1;
  tensor.tied_to = nullptr;
  tensor.change = change_;
}

// The shape that the model map has for a tensor, or that it has in its unit; without one: of the
// product.
void Decoder::describe_shape(const Rule* rule, const UnitTensor* unit_tensor, nnr_tensor& tensor) {
  const DataUnit& unit = walk_.unit();
  if (NNR_WITH_MAP && rule && rule->has_shape) {
    tensor.dimension_count = rule->shape.count;
    tensor.dimensions = rule->shape.dimensions;
  } else if (!unit_tensor || (unit_tensor->role == NNR_WEIGHT && !unit.is_separate_factor())) {
    tensor.dimension_count = unit.dimension_count;
    tensor.dimensions = unit.dimensions;
  } else {
    dimensions_[0] = unit_tensor->rows;
    dimensions_[1] = unit_tensor->cols;
    tensor.dimension_count = unit_tensor->role <= NNR_FACTOR_H ? 2 : 1;
    tensor.dimensions = dimensions_;
  }
}

}  // namespace nnr::device
