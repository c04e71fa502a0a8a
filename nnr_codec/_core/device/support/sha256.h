// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <cstdint>

namespace nnr::device {

class Sha256 {
 public:
  void update(const uint8_t* data, size_t size);
  // Writes the first `size` bytes of the digest, 32 at most; the object is of no further use.
  void finish(uint8_t* digest, size_t size);

 private:
  void add_block();

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t block_[64] = {};
  uint64_t bytes_ = 0;
};

}  // namespace nnr::device
