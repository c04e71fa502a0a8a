// Inflates a zlib stream (RFC 1950, RFC 1951).
#pragma once

#include "memory.h"

namespace nnr::device {

enum class InflateStatus { kOk, kDamaged, kTooLong, kNoMemory };

// Inflates all of `data` to `out`, which then has `written` bytes, at most `most`.
InflateStatus inflate(const uint8_t* data, size_t size, uint64_t most, Array<char>& out,
                      size_t& written);

}  // namespace nnr::device
