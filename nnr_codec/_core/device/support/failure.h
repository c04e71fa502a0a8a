// The first thing that went wrong.
#pragma once

#include "../nnr.h"
#include "config.h"

namespace nnr::device {

// Why something is refused, in words, if this build has them.
#if NNR_WITH_TEXTS
struct Reason {
  const char* text;
  constexpr Reason(const char* words) : text(words) {}
};
#else
struct Reason {
  static constexpr const char* text = "";
  constexpr Reason(const char*) {}
};
#endif

class Failure {
 public:
  bool is_set() const { return error_.status != NNR_OK; }
  const nnr_error& error() const { return error_; }

  // The unit that is being read, and where it begins in the bitstream.
  void begin_unit(uint32_t unit, uint64_t byte_offset) {
    unit_ = unit;
    unit_offset_ = byte_offset;
  }

  // Notes an error, unless there is one already. Returns false, for the caller to return.
  bool set(nnr_status status, Reason reason, uint64_t offset_in_unit = 0) {
    if (!is_set()) error_ = {status, unit_, unit_offset_ + offset_in_unit, reason.text};
    return false;
  }
  bool invalid(Reason reason) { return set(NNR_INVALID, reason); }
  bool unsupported(Reason reason) { return set(NNR_UNSUPPORTED, reason); }
  bool limit(Reason reason) { return set(NNR_LIMIT, reason); }
  bool no_memory() { return set(NNR_OUT_OF_MEMORY, "the caller gave no memory"); }

 private:
  nnr_error error_ = {NNR_OK, 0, 0, ""};
  uint32_t unit_ = 0;
  uint64_t unit_offset_ = 0;
};

}  // namespace nnr::device
