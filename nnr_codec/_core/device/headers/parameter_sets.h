// Start unit, parameter sets, topology and quantization units (spec/bitstream.md, sections 3, 4).
#pragma once

#include <cstdint>

#include "../support/memory.h"
#include "bit_reader.h"

namespace nnr::device {

struct Quantization {
  bool is_present = false;
  uint8_t density = 0;
  int16_t parameter = 0;
};

// What the units read so far have set.
struct Parameters {
  uint8_t profile = 0;
  bool has_mps = false;
  bool indexed_names = false;      // mps_topology_indexed_reference_flag
  bool parent_signalling = false;  // mps_parent_signalling_enabled_flag
  Quantization of_model;
  Quantization current;  // the model's, until a layer parameter set replaces it
};

// The latest reference list: names that data units give by their index.
class ReferenceList {
 public:
  explicit ReferenceList(const nnr_memory& memory) : bytes_(memory), starts_(memory) {}

  // Reads a list and keeps a copy of it.
  bool read(BitReader& reader, const nnr_limits& limits, Failure& failure);
  size_t size() const { return starts_.size(); }
  Text name(size_t index) const;

 private:
  Array<char> bytes_;  // the names, each ended by a zero
  Array<uint32_t> starts_;
};

bool read_start_unit(BitReader& reader, Parameters& parameters);
bool read_model_parameter_set(BitReader& reader, const nnr_limits& limits, Parameters& parameters);
bool read_layer_parameter_set(BitReader& reader, const nnr_limits& limits, Parameters& parameters);
// `model_map`: its text, if the unit may be that of a model map.
bool read_topology_unit(BitReader& reader, const nnr_limits& limits, ReferenceList& references,
                        Failure& failure, Text& model_map, uint64_t& text_bytes);
bool read_quantization_unit(BitReader& reader, const nnr_limits& limits, uint64_t& text_bytes);

}  // namespace nnr::device
