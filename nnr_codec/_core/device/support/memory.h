// Memory through the caller's functions, without exceptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../nnr.h"

namespace nnr::device {

// An array of plain elements that the caller's functions allocate. Not to be copied.
template <class T>
class Array {
 public:
  explicit Array(const nnr_memory& memory) : memory_(&memory) {}
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { clear(); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }

  // Makes it `size` elements, all bytes of which are 0; false if there is no memory.
  [[nodiscard]] bool allocate(uint64_t size) {
    if (size == size_) {
      if (size_) std::memset(static_cast<void*>(data_), 0, size_ * sizeof(T));
      return true;
    }
    clear();
    if (size == 0) return true;
    T* data = claim(size);
    if (!data) return false;
    std::memset(static_cast<void*>(data), 0, static_cast<size_t>(size) * sizeof(T));
    take(data, static_cast<size_t>(size));
    return true;
  }

  // Makes it `size` elements at least, of any values; false if there is no memory.
  [[nodiscard]] bool reserve(uint64_t size) { return size <= size_ || grow(size, 0); }

  // Makes it larger, the first `used` elements kept; false if there is no memory.
  [[nodiscard]] bool grow(uint64_t size, size_t used) {
    T* data = claim(size);
    if (!data) return false;
    if (used) std::memcpy(static_cast<void*>(data), data_, used * sizeof(T));
    clear();
    take(data, static_cast<size_t>(size));
    return true;
  }

  void clear() {
    if (data_) memory_->release(memory_->context, data_, size_ * sizeof(T));
    data_ = nullptr;
    size_ = 0;
  }

  // Takes what the other has, which is empty then. Both have the same caller's functions.
  void move_from(Array& other) {
    clear();
    take(other.data_, other.size_);
    other.data_ = nullptr;
    other.size_ = 0;
  }

 private:
  T* claim(uint64_t size) {
    if (size > SIZE_MAX / sizeof(T)) return nullptr;
    return static_cast<T*>(
        memory_->allocate(memory_->context, static_cast<size_t>(size) * sizeof(T)));
  }
  void take(T* data, size_t size) {
    data_ = data;
    size_ = size;
  }

  const nnr_memory* memory_;
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nnr::device
