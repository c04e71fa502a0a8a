#include "parameter_sets.h"

namespace nnr::device {

namespace {

constexpr unsigned kQuantizationMethods = 3;  // NNR_QSU and NNR_QCB

enum TopologyFormat : uint32_t { kUnrec, kNnef, kOnnx, kPyt, kTef, kPrun, kReflist };

void skip_class_accuracies(BitReader& reader) {
  const uint32_t classes = reader.u(8);
  reader.ue(7);
  reader.skip(uint64_t{32} * classes);
}

// Entries of a performance map or dimensions of its blocks: one fewer than the count.
uint32_t one_fewer(BitReader& reader, uint32_t count) {
  if (count == 0) reader.invalid("a count of a performance map is 0");
  return reader.ok() ? count - 1 : 0;
}

void skip_accuracy_map(BitReader& reader, unsigned numbers) {
  for (uint32_t left = one_fewer(reader, reader.u(8)); left > 0 && reader.ok(); --left) {
    reader.skip(32 * numbers);
    skip_class_accuracies(reader);
  }
}

void skip_unification_map(BitReader& reader, const nnr_limits& limits) {
  for (uint32_t left = one_fewer(reader, reader.u(8)); left > 0 && reader.ok(); --left) {
    uint32_t dimensions = one_fewer(reader, reader.ue(1));
    if (dimensions > limits.dimensions) reader.fail(NNR_LIMIT, "too many dimensions");
    for (; dimensions > 0 && reader.ok(); --dimensions) reader.ue(7);
    reader.align();
    for (int blocks = 0; blocks < 2; ++blocks) {
      const uint32_t sizes = one_fewer(reader, reader.u(8));
      reader.skip(uint64_t{8} * sizes);
    }
    reader.skip(2 * 32);
    skip_class_accuracies(reader);
  }
}

void skip_decomposition_map(BitReader& reader) {
  for (uint32_t left = one_fewer(reader, reader.u(8)); left > 0 && reader.ok(); --left) {
    reader.skip(3 * 32);
    const uint32_t classes = reader.u(16);
    reader.skip(uint64_t{32} * classes);
  }
}

Quantization read_quantization(BitReader& reader, uint32_t methods) {
  if (methods > kQuantizationMethods) reader.invalid("a quantization method is reserved");
  if (methods == 0 || !reader.ok()) return {};
  Quantization quantization;
  quantization.is_present = true;
  quantization.density = static_cast<uint8_t>(reader.u(3));
  quantization.parameter = static_cast<int16_t>(reader.i(13));
  return quantization;
}

// Profile 1's part; whether validation_set_performance is present.
bool read_second_edition_flags(BitReader& reader, const nnr_limits& limits,
                               Parameters& parameters) {
  const bool has_model_id = reader.flag();
  const bool has_performance = reader.flag();
  const bool has_valid_metric = reader.flag();
  parameters.parent_signalling = reader.flag();
  if (parameters.parent_signalling) {
    reader.u(1);  // nnr_pre_flag
  } else {
    reader.zeros(1);
  }
  reader.zeros(2);
  if (has_model_id) reader.st(limits.name_bytes);
  if (has_performance || has_valid_metric) reader.st(limits.name_bytes);
  return has_performance;
}

}  // namespace

bool read_start_unit(BitReader& reader, Parameters& parameters) {
  const uint32_t profile = reader.u(8);
  if (profile > 1) reader.fail(NNR_UNSUPPORTED, "general_profile_idc is neither 0 nor 1");
  parameters.profile = static_cast<uint8_t>(profile);
  return reader.ok();
}

bool read_model_parameter_set(BitReader& reader, const nnr_limits& limits, Parameters& parameters) {
  reader.u(1);  // topology_carriage_flag
  const bool sparsification = reader.flag(), pruning = reader.flag();
  const bool unification = reader.flag(), decomposition = reader.flag();
  const uint32_t methods = reader.u(3);
  parameters.indexed_names = reader.flag();
  bool has_performance = false;
  if (parameters.profile == 1) {
    has_performance = read_second_edition_flags(reader, limits, parameters);
  } else {
    reader.zeros(7);
  }
  parameters.of_model = parameters.current = read_quantization(reader, methods);
  if (sparsification) skip_accuracy_map(reader, 3);
  if (pruning) skip_accuracy_map(reader, 2);
  if (unification) skip_unification_map(reader, limits);
  if (decomposition) skip_decomposition_map(reader);
  if (has_performance) reader.skip(32);
  reader.align();
  parameters.has_mps = true;
  return reader.ok();
}

bool read_layer_parameter_set(BitReader& reader, const nnr_limits& limits, Parameters& parameters) {
  reader.u(1);  // lps_self_contained_flag
  reader.zeros(7 + 1);
  const bool sparsification = reader.flag(), pruning = reader.flag(), unification = reader.flag();
  const uint32_t methods = reader.u(3);
  reader.zeros(1);
  const Quantization of_layer = read_quantization(reader, methods);
  parameters.current = of_layer.is_present ? of_layer : parameters.of_model;
  if (sparsification) skip_accuracy_map(reader, 3);
  if (pruning) skip_accuracy_map(reader, 2);
  if (unification) skip_unification_map(reader, limits);
  reader.align();
  return reader.ok();
}

bool ReferenceList::read(BitReader& reader, const nnr_limits& limits, Failure& failure) {
  const uint64_t count = uint64_t{2} + reader.ue(7);
  if (count > limits.units) reader.fail(NNR_LIMIT, "a reference list is longer than the limit");
  reader.fits(count, 8);
  reader.align();
  if (!reader.ok()) return false;
  Array<char>& bytes = bytes_;
  if (!bytes.allocate(reader.bits_left() >> 3) || !starts_.allocate(count))
    return failure.no_memory();
  size_t end = 0;
  for (size_t i = 0; i < starts_.size(); ++i) {
    const Text name = reader.st(limits.name_bytes);
    if (!reader.ok()) return false;
    starts_[i] = static_cast<uint32_t>(end);
    if (name.size) std::memcpy(bytes.data() + end, name.data, name.size);
    end += name.size + 1;
  }
  return true;
}

Text ReferenceList::name(size_t index) const {
  const char* start = bytes_.data() + starts_[index];
  return {start, std::strlen(start)};
}

bool read_topology_unit(BitReader& reader, const nnr_limits& limits, ReferenceList& references,
                        Failure& failure, Text& model_map, uint64_t& text_bytes) {
  const uint32_t storage = reader.u(8), compression = reader.u(8);
  if (storage > kReflist) reader.invalid("topology_storage_format is reserved");
  if (compression > 1) reader.invalid("topology_compression_format is reserved");
  if (storage == kPrun) reader.fail(NNR_UNSUPPORTED, "pruning topologies");
  if (storage == kReflist) {
    if (compression) reader.fail(NNR_UNSUPPORTED, "a compressed reference list");
    return reader.ok() && references.read(reader, limits, failure);
  }
  if (compression || storage == kNnef || storage == kOnnx) {
    text_bytes += reader.bits_left() >> 3;
    reader.rest(limits.topology_bytes);
    return reader.ok();
  }
  const Text text = reader.st(limits.topology_bytes);
  text_bytes += text.size;
  if (storage == kUnrec) model_map = text;
  return reader.ok();
}

bool read_quantization_unit(BitReader& reader, const nnr_limits& limits, uint64_t& text_bytes) {
  reader.u(8);  // quantization_storage_format
  const uint32_t compression = reader.u(8);
  if (compression > 1) reader.invalid("quantization_compression_format is reserved");
  if (compression) {
    text_bytes += reader.bits_left() >> 3;
    reader.rest(limits.topology_bytes);
  } else {
    text_bytes += reader.st(limits.topology_bytes).size;
  }
  return reader.ok();
}

}  // namespace nnr::device
