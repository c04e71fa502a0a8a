// Elements that are kept until another tensor is made of them: parts, and factors.
#include "decoder.h"

namespace nnr::device {

#if NNR_WITH_DC

// The weights that are still to be formed of a factor.
uint32_t Decoder::uses_of(const NamedTensor& named) const {
  uint32_t uses = 0;
  for (const WeightUse* use = named.uses; use; use = use->next)
    if (forms(*use->weight->tensor)) ++uses;
  return uses;
}

// The same of a factor of the block: its product, if that is to be formed.
uint32_t Decoder::block_uses() const {
  return forms(*walk_.find(walk_.unit().product_name())) ? 1 : 0;
}

// Decodes a tensor to memory: a factor of a block as binary32 numbers, others as they come back.
bool Decoder::store(NamedTensor& named, const UnitTensor& unit_tensor, bool as_floats,
                    uint32_t uses) {
  const Values given = values_;
  if (as_floats) values_ = values_.as_factor();
  StoredTensor* stored = make_stored(unit_tensor);
  if (!stored) return failure_.no_memory();
  named.stored = stored;
  stored->uses = uses;
  uint8_t* to = static_cast<uint8_t*>(stored->data);
  const size_t size = type_info(values_.type()).size;
  for (uint64_t done = 0; done < elements_;) {
    const uint64_t left = elements_ - done;
    const size_t count = left < kPiece ? static_cast<size_t>(left) : kPiece;
    if (done % kUncancelled == 0 && !ask_whether_cancelled()) return false;
    if (!read_native(to + static_cast<size_t>(done) * size, done, count)) return false;
    done += count;
  }
  values_ = given;
  from_ = as_floats ? From::kStoredFloats : From::kStored;
  read_from_ = stored;
  return true;
}

StoredTensor* Decoder::make_stored(const UnitTensor& unit_tensor) {
  const size_t size = type_info(values_.type()).size;
  StoredTensor* stored = walk_.arena().make<StoredTensor>();
  if (!stored || elements_ > SIZE_MAX / size) return nullptr;
  nnr_tensor described = {};
  describe_shape(nullptr, &unit_tensor, described);
  stored->shape.dimensions = walk_.arena().make_array<uint64_t>(described.dimension_count);
  if (!stored->shape.dimensions) return nullptr;
  stored->shape.count = described.dimension_count;
  for (uint32_t i = 0; i < described.dimension_count; ++i)
    stored->shape.dimensions[i] = described.dimensions[i];
  stored->type = values_.type();
  const size_t bytes = static_cast<size_t>(elements_) * size;
  stored->data = options_.memory.allocate(options_.memory.context, bytes);
  if (!stored->data) return nullptr;
  stored->bytes = bytes;
  stored->next = stored_;
  stored_ = stored;
  return stored;
}

// Releases what the tensor that could be read until now was made of, as far as no other needs it.
void Decoder::release_used() {
  for (NamedTensor*& used : used_) {
    if (used && --used->stored->uses == 0) release(*used->stored);
    used = nullptr;
  }
}

void Decoder::release(StoredTensor& stored) {
  if (stored.data) options_.memory.release(options_.memory.context, stored.data, stored.bytes);
  stored.data = nullptr;
}

void Decoder::release_all() {
  for (StoredTensor* stored = stored_; stored; stored = stored->next) release(*stored);
  stored_ = nullptr;
}

#else

void Decoder::release_all() {}

#endif

Decoder::~Decoder() { release_all(); }

}  // namespace nnr::device
