// Small things that live as long as their owner, and the table of names that is made of them.
#pragma once

#include <new>

#include "memory.h"
#include "utf8.h"

namespace nnr::device {

// Allocates in larger pieces, and releases all at once.
class Arena {
 public:
  explicit Arena(const nnr_memory& memory) : memory_(&memory) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    while (piece_) {
      Piece* next = piece_->next;
      memory_->release(memory_->context, piece_, piece_->size);
      piece_ = next;
    }
  }

  // A new T, whose destructor nobody calls; null if there is no memory.
  template <class T>
  T* make() {
    void* place = allocate(sizeof(T));
    return place ? new (place) T() : nullptr;
  }
  // `count` numbers, not set.
  template <class T>
  T* make_array(size_t count) {
    return count > SIZE_MAX / sizeof(T) ? nullptr : static_cast<T*>(allocate(count * sizeof(T)));
  }
  // A copy of a text, ended by a zero; its data are null if there is no memory.
  Text copy(const Text& text) {
    char* data = static_cast<char*>(allocate(text.size + 1));
    if (!data) return {};
    if (text.size) std::memcpy(data, text.data, text.size);
    data[text.size] = 0;
    return {data, text.size};
  }

 private:
  static constexpr size_t kAlignment = alignof(max_align_t) > 8 ? 8 : alignof(max_align_t);
  static constexpr size_t kLeast = 1024;

  struct Piece {
    Piece* next;
    size_t size;
  };

  void* allocate(size_t size) {
    if (size > SIZE_MAX - 2 * kLeast) return nullptr;
    size = (size + kAlignment - 1) / kAlignment * kAlignment;
    if (size > left_) {
      constexpr size_t head = (sizeof(Piece) + kAlignment - 1) / kAlignment * kAlignment;
      const size_t all = head + size > kLeast ? head + size : kLeast;
      void* place = memory_->allocate(memory_->context, all);
      if (!place) return nullptr;
      piece_ = new (place) Piece{piece_, all};
      next_ = static_cast<char*>(place) + head;
      left_ = all - head;
    }
    void* result = next_;
    next_ += size;
    left_ -= size;
    return result;
  }

  const nnr_memory* memory_;
  Piece* piece_ = nullptr;
  char* next_ = nullptr;
  size_t left_ = 0;
};

// Entries by their names. An Entry has the members `chain` (Entry*), `hash` and `name`.
template <class Entry>
class NameTable {
 public:
  NameTable(const nnr_memory& memory, Arena& arena) : buckets_(memory), arena_(&arena) {}

  Entry* find(const Text& name) const {
    if (count_ == 0) return nullptr;
    const uint32_t hash = hash_of(name);
    for (Entry* entry = buckets_[hash % buckets_.size()]; entry; entry = entry->chain)
      if (entry->hash == hash && entry->name.equals(name)) return entry;
    return nullptr;
  }

  // The entry, made if there is none; null if there is no memory.
  Entry* find_or_add(const Text& name) {
    if (Entry* entry = find(name)) return entry;
    if (count_ >= buckets_.size() && !rehash()) return nullptr;
    Entry* entry = arena_->make<Entry>();
    if (!entry) return nullptr;
    entry->name = arena_->copy(name);
    if (!entry->name.data) return nullptr;
    entry->hash = hash_of(name);
    link(entry);
    ++count_;
    return entry;
  }

  // Calls visit(entry) for all, in no order, until it returns false.
  template <class Visit>
  bool for_each(Visit&& visit) const {
    for (size_t i = 0; i < buckets_.size(); ++i)
      for (Entry* entry = buckets_[i]; entry; entry = entry->chain)
        if (!visit(*entry)) return false;
    return true;
  }

 private:
  static uint32_t hash_of(const Text& name) {  // FNV-1a
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < name.size; ++i)
      hash = (hash ^ static_cast<uint8_t>(name.data[i])) * 16777619u;
    return hash;
  }

  void link(Entry* entry) {
    Entry*& bucket = buckets_[entry->hash % buckets_.size()];
    entry->chain = bucket;
    bucket = entry;
  }

  bool rehash() {
    Entry* all = nullptr;
    for (size_t i = 0; i < buckets_.size(); ++i) {
      while (Entry* entry = buckets_[i]) {
        buckets_[i] = entry->chain;
        entry->chain = all;
        all = entry;
      }
    }
    const size_t before = buckets_.size();
    const bool grown = buckets_.grow(before ? 2 * before : 16, 0);
    for (size_t i = 0; i < buckets_.size(); ++i) buckets_[i] = nullptr;
    while (all) {
      Entry* next = all->chain;
      link(all);
      all = next;
    }
    return grown;
  }

  Array<Entry*> buckets_;
  Arena* arena_;
  size_t count_ = 0;
};

}  // namespace nnr::device
