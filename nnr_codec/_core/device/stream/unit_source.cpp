#include "unit_source.h"

namespace nnr::device {

size_t UnitSource::feed(const void* data, size_t size) {
  const size_t missing = wanted_ > held_ ? wanted_ - held_ : 0;
  const size_t taken = size < missing ? size : missing;
  const uint8_t* bytes = static_cast<const uint8_t*>(data);
  for (size_t done = 0; done < taken;) {
    if (!make_room(wanted_)) {
      has_failed_ = true;
      return done;
    }
    const size_t room = buffer_.size() - held_;
    const size_t part = taken - done < room ? taken - done : room;
    std::memcpy(buffer_.data() + held_, bytes + done, part);
    held_ += part;
    done += part;
  }
  return taken;
}

Supply UnitSource::require(size_t size, Failure& failure) {
  wanted_ = size;
  while (held_ < size) {
    const Supply supply = read_more(failure);
    if (supply != Supply::kThere) return supply;
  }
  return Supply::kThere;
}

Supply UnitSource::read_more(Failure& failure) {
  if (kind_ == Kind::kMemory) return Supply::kEnd;
  if (kind_ == Kind::kFeed && !has_failed_) return is_ended_ ? Supply::kEnd : Supply::kNeedInput;
  if (has_failed_ || !make_room(wanted_)) {
    failure.no_memory();
    return Supply::kFailed;
  }
  const size_t room = buffer_.size() < wanted_ ? buffer_.size() : wanted_;
  const size_t count = read_(context_, buffer_.data() + held_, room - held_);
  if (count > room - held_) {
    failure.set(NNR_INPUT_FAILED, "the caller's function could not read");
    return Supply::kFailed;
  }
  held_ += count;
  return count ? Supply::kThere : Supply::kEnd;
}

// Makes room for a byte more, at most for `size` in all.
bool UnitSource::make_room(size_t size) {
  const size_t before = buffer_.size();
  if (held_ < before) return true;
  const size_t least = before < kLeastPiece ? kLeastPiece : before;
  return buffer_.grow(size - before < least ? size : before + least, held_);
}

}  // namespace nnr::device
