// Where the bytes of a bitstream come from: memory, a function, or calls that feed them.
#pragma once

#include <cstdint>

#include "../support/failure.h"
#include "../support/memory.h"

namespace nnr::device {

enum class Supply { kThere, kEnd, kNeedInput, kFailed };

// Holds the bytes from the start of a unit on.
class UnitSource {
 public:
  explicit UnitSource(const nnr_memory& memory) : buffer_(memory) {}

  void open_memory(const void* data, size_t size) {
    kind_ = Kind::kMemory;
    data_ = static_cast<const uint8_t*>(data);
    held_ = size;
  }
  void open_reader(nnr_read_function read, void* context) {
    kind_ = Kind::kReader;
    read_ = read;
    context_ = context;
  }

  // Of fed sources: takes what the last `require` still lacks; returns the number of bytes.
  size_t feed(const void* data, size_t size);
  void feed_end() { is_ended_ = true; }
  bool is_fed() const { return kind_ == Kind::kFeed; }

  // Makes so many bytes of the unit available at data(). kEnd: there are not so many.
  Supply require(size_t size, Failure& failure);
  const uint8_t* data() const { return kind_ == Kind::kMemory ? data_ : buffer_.data(); }
  // Bytes at data() by now.
  size_t held() const { return held_; }
  // Goes on to the next unit; the held bytes belong to this one, but in memory.
  void pass(size_t size) {
    if (kind_ == Kind::kMemory) data_ += size;
    held_ = kind_ == Kind::kMemory ? held_ - size : 0;
    wanted_ = kLeastUnit;
  }

 private:
  enum class Kind : uint8_t { kMemory, kReader, kFeed };
  static constexpr size_t kLeastPiece = 256;
  static constexpr size_t kLeastUnit = 2;  // bytes that tell how many there are

  Supply read_more(Failure& failure);
  bool make_room(size_t size);

  Kind kind_ = Kind::kFeed;
  bool is_ended_ = false;    // fed sources: there are no more bytes
  bool has_failed_ = false;  // fed sources: there was no memory
  const uint8_t* data_ = nullptr;
  nnr_read_function read_ = nullptr;
  void* context_ = nullptr;
  Array<uint8_t> buffer_;  // grows with what comes, not with what is announced
  size_t held_ = 0, wanted_ = kLeastUnit;
};

}  // namespace nnr::device
