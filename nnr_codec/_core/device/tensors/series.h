// What a series of bitstreams hands on from one to the next (spec/bitstream.md, section 14).
#pragma once

#include <cstdint>

#include "../support/arena.h"

namespace nnr::device {

// A tensor's integers in the latest bitstream that had it, and where they ever were other than 0.
struct SeriesTensor {
  SeriesTensor* chain = nullptr;
  uint32_t hash = 0;
  Text name;
  uint64_t elements = 0;
  int32_t* latest = nullptr;
  uint8_t* history = nullptr;
};

class Series {
 public:
  // SHA-256 of the latest bitstream whose integers it has; `has_digest`: there is one.
  uint8_t digest[32] = {};
  bool has_digest = false;

  explicit Series(const nnr_memory& memory)
      : memory_(memory), arena_(memory_), tensors_(memory_, arena_) {}
  ~Series() {
    tensors_.for_each([this](SeriesTensor& tensor) {
      clear(tensor);
      return true;
    });
  }

  SeriesTensor* find(const Text& name) const {
    SeriesTensor* tensor = tensors_.find(name);
    return tensor && tensor->latest ? tensor : nullptr;
  }

  // The tensor, with room for so many integers; null if there is no memory. Those of an earlier
  // tensor of the same size stay.
  SeriesTensor* room_for(const Text& name, uint64_t elements) {
    SeriesTensor* tensor = tensors_.find_or_add(name);
    if (!tensor || (tensor->latest && tensor->elements == elements)) return tensor;
    clear(*tensor);
    if (elements > SIZE_MAX / sizeof(int32_t)) return nullptr;
    const size_t count = static_cast<size_t>(elements);
    void* latest = memory_.allocate(memory_.context, count * sizeof(int32_t));
    if (!latest) return nullptr;
    void* history = memory_.allocate(memory_.context, count);
    if (!history) {
      memory_.release(memory_.context, latest, count * sizeof(int32_t));
      return nullptr;
    }
    tensor->elements = elements;
    tensor->latest = static_cast<int32_t*>(latest);
    tensor->history = static_cast<uint8_t*>(history);
    std::memset(tensor->latest, 0, count * sizeof(int32_t));
    std::memset(tensor->history, 0, count);
    return tensor;
  }

 private:
  void clear(SeriesTensor& tensor) {
    if (!tensor.latest) return;
    const size_t count = static_cast<size_t>(tensor.elements);
    memory_.release(memory_.context, tensor.latest, count * sizeof(int32_t));
    memory_.release(memory_.context, tensor.history, count);
    tensor.latest = nullptr;
  }

  nnr_memory memory_;
  Arena arena_;
  NameTable<SeriesTensor> tensors_;
};

}  // namespace nnr::device
