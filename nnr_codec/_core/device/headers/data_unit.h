// The header of a data unit (spec/bitstream.md, section 5), and the tensors that it announces.
#pragma once

#include <cstdint>

#include "../../decode/tensor_decoder.h"
#include "../support/memory.h"
#include "bit_reader.h"
#include "parameter_sets.h"

namespace nnr::device {

enum PayloadType : uint8_t { kInt, kFloat, kRawFloat, kBlock };
enum ParameterTypes : uint8_t { kDecomposed = 1, kLocalScaling = 2, kBatchNorm = 4, kBias = 8 };

inline constexpr int kMaxDimensions = 32;
inline constexpr int kMaxUnitTensors = 8;  // G, H, local scaling, four of batch norm, bias
inline constexpr uint8_t kNoFormat = 0xff;

struct Codebook {
  explicit Codebook(const nnr_memory& memory) : values(memory) {}
  Array<int32_t> values;
  uint32_t zero_offset = 0;
};

// A tensor of a unit, as its codeword has it.
struct UnitTensor {
  nnr_role role = NNR_WEIGHT;
  Text name;
  uint64_t rows = 1, cols = 1;
  const Codebook* codebook = nullptr;
  uint64_t elements() const { return rows * cols; }
};

// The entry points of a unit, read one by one.
class EntryPointReader {
 public:
  EntryPointReader() = default;
  EntryPointReader(const BitReader& reader, bool has_states)
      : reader_(reader), has_states_(has_states) {}
  // The next one, its position the distance from the block row before.
  BlockRowState next();

 private:
  BitReader reader_;
  bool has_states_ = false;
  bool is_first_ = true;
  int64_t offset_ = 0;
};

struct DataUnit {
  explicit DataUnit(const nnr_memory& memory) : codebooks{Codebook(memory), Codebook(memory)} {}

  PayloadType payload_type = kInt;
  int name_count = 0;
  Text names[kMaxUnitTensors];
  bool parent_present = false;
  bool temporal_contexts = false;
  uint8_t data_format = kNoFormat;  // nnr_decompressed_data_format
  uint8_t parameter_types = 0;
  uint32_t rank = 0, g_rows = 0;
  uint32_t dimension_count = 0;
  uint64_t dimensions[kMaxDimensions] = {};
  uint64_t elements = 0;  // of the dimensions
  bool dependent_quantization = false;
  int unary_length = 10;
  int scan_order = 0;
  uint64_t entry_points = 0;      // their number
  uint64_t entry_points_bit = 0;  // where they begin
  int codebook_count = 0;
  Codebook codebooks[2];  // of the weight, or of G and H
  size_t payload_start = 0;

  bool is_decomposed_block() const {
    return payload_type == kBlock && (parameter_types & kDecomposed);
  }
  // A factor in a unit of its own.
  bool is_separate_factor() const {
    return payload_type != kBlock && (parameter_types & kDecomposed) &&
           (names[0].ends_with('G') || names[0].ends_with('H'));
  }
  // The name of the product of a decomposed block.
  Text product_name() const {
    return names[0].ends_with('G') ? names[0].without_last(2) : names[0];
  }
  uint64_t h_cols() const { return elements / g_rows; }
  // Block rows but the first that a weight of so many rows has by its scan order.
  uint64_t entry_points_of(uint64_t rows) const {
    return scan_order == 0 ? 0 : ((rows - 1) >> (2 + scan_order));
  }

  // The unit's tensors: in the order of the names, or in that of the codeword; their number.
  int tensors_by_name(UnitTensor* tensors) const;
  int tensors_by_codeword(UnitTensor* tensors) const;
};

// Reads the header; `references`: the list that indices refer to. Adds to `header_entries` what it
// is kept as.
bool read_data_unit(BitReader& reader, const Parameters& parameters, const nnr_limits& limits,
                    const ReferenceList& references, Failure& failure, DataUnit& unit,
                    uint64_t& header_entries);

}  // namespace nnr::device
