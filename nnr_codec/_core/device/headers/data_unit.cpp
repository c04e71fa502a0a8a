#include "data_unit.h"

namespace nnr::device {

namespace {

constexpr uint64_t kMaxCodebookSize = uint64_t{1} << 20;
constexpr uint64_t kMaxEntryPoints = uint64_t{1} << 22;
constexpr uint32_t kLastFormat = 9;  // of nnr_decompressed_data_format

class HeaderReader {
 public:
  HeaderReader(BitReader& reader, const Parameters& parameters, const nnr_limits& limits,
               const ReferenceList& references, Failure& failure, DataUnit& unit)
      : r_(reader),
        parameters_(parameters),
        limits_(limits),
        references_(references),
        failure_(failure),
        unit_(unit) {}

  bool read() {
    const uint32_t payload_type = r_.u(5);
    if (payload_type > kBlock) return r_.invalid("the payload type is reserved");
    unit_.payload_type = static_cast<PayloadType>(payload_type);
    const bool several = r_.flag(), has_format = r_.flag(), has_parameters = r_.flag();
    if (several != (payload_type == kBlock))
      return r_.invalid("several topology elements go with BLOCK, and with that alone");
    if (!read_names(several)) return false;
    if (parameters_.profile == 1) read_node_ids();
    const bool has_codebook = (payload_type == kFloat || payload_type == kBlock) && r_.flag();
    if (has_codebook && !read_codebook(unit_.codebooks[unit_.codebook_count++])) return false;
    if (payload_type != kRawFloat) unit_.dependent_quantization = r_.flag();
    if (has_format) {
      unit_.data_format = static_cast<uint8_t>(r_.u(7));
      if (unit_.data_format > kLastFormat) return r_.invalid("the data format is reserved");
    }
    if (has_parameters && !read_input_parameters()) return false;
    if (!r_.ok()) return false;
    if (unit_.dimension_count == 0) return r_.fail(NNR_UNSUPPORTED, "a tensor without dimensions");
    if (has_codebook && unit_.is_decomposed_block() &&
        !read_codebook(unit_.codebooks[unit_.codebook_count++]))
      return false;
    if (unit_.dimension_count > 1 && !read_scan()) return false;
    r_.align();
    unit_.payload_start = r_.bytes_read();
    return r_.ok() && check();
  }

  uint64_t entries() const { return entries_ + unit_.dimension_count + unit_.entry_points; }

 private:
  bool read_names(bool several) {
    uint64_t count = 1;
    if (several) {
      count = uint64_t{2} + r_.ue(7);
      if (r_.ok() && count > kMaxUnitTensors)
        return r_.invalid("more names than a block can have tensors");
      if (!parameters_.indexed_names) r_.align();
    }
    for (uint64_t i = 0; i < count && r_.ok(); ++i) unit_.names[i] = read_name();
    if (several && parameters_.indexed_names) r_.align();
    unit_.name_count = static_cast<int>(count);
    entries_ += parameters_.indexed_names ? 2 * count : count;
    return r_.ok();
  }

  Text read_name() {
    if (!parameters_.indexed_names) return r_.st(limits_.name_bytes);
    const uint32_t index = r_.ue(7);
    if (r_.ok() && index >= references_.size()) r_.invalid("an index is in no reference list");
    return r_.ok() ? references_.name(index) : Text{};
  }

  void read_node_ids() {
    const bool has_node_id = r_.flag();
    if (has_node_id) skip_node_id();
    if (!parameters_.parent_signalling) return;
    unit_.parent_present = r_.flag();
    if (!unit_.parent_present) return;
    const uint32_t type = r_.u(2);
    if (type > 2) r_.invalid("parent_node_id_type is reserved");
    unit_.temporal_contexts = r_.flag();
    if (type == 0) {
      r_.ue(1);  // parent_device_id
      if (!has_node_id) skip_parameter_and_depth();
    } else {
      r_.skip(256 * type);  // SHA-256, SHA-512
    }
  }

  void skip_node_id() {
    r_.ue(1);  // device_id
    skip_parameter_and_depth();
  }
  void skip_parameter_and_depth() {
    r_.ue(5);
    r_.ue(4);
  }

  bool read_codebook(Codebook& book) {
    const unsigned order = r_.u(4);
    const uint32_t size = r_.ue(2);
    if (r_.ok() && size == 0) return r_.invalid("a codebook is empty");
    if (size > kMaxCodebookSize) return r_.fail(NNR_LIMIT, "a codebook is too large");
    if (!r_.fits(size, 1)) return false;
    const int64_t zero = (size >> 1) + r_.ie(2);
    if (r_.ok() && (zero < 0 || zero >= size)) return r_.invalid("zero_offset is outside");
    const int64_t center = r_.ie(7);
    if (!r_.ok()) return false;
    if (!book.values.allocate(size)) return failure_.no_memory();
    book.zero_offset = static_cast<uint32_t>(zero);
    entries_ += size;
    return set(book, zero, center) && read_side(book, zero, center, -1, order) &&
           read_side(book, zero, center, 1, order);
  }

  // The values on one side of that at zero_offset, outwards.
  bool read_side(Codebook& book, int64_t index, int64_t value, int step, unsigned order) {
    const int64_t end = step < 0 ? -1 : static_cast<int64_t>(book.values.size());
    for (index += step; index != end; index += step) {
      value += step * (int64_t{1} + r_.ue(order));
      if (!r_.ok() || !set(book, index, value)) return false;
    }
    return true;
  }

  bool set(Codebook& book, int64_t index, int64_t value) {
    if (value < INT32_MIN || value > INT32_MAX)
      return r_.invalid("a codebook has values beyond 32 bits");
    book.values[static_cast<size_t>(index)] = static_cast<int32_t>(value);
    return true;
  }

  bool read_input_parameters() {
    const bool has_dimensions = r_.flag(), has_unary_length = r_.flag();
    unit_.parameter_types = static_cast<uint8_t>(r_.u(4));
    if (unit_.parameter_types & kDecomposed) {
      unit_.rank = r_.ue(3);
      unit_.g_rows = r_.ue(3);
    }
    if (has_dimensions) {
      unit_.dimension_count = r_.ue(1);
      if (unit_.dimension_count > limits_.dimensions || unit_.dimension_count > kMaxDimensions)
        return r_.fail(NNR_LIMIT, "a tensor has too many dimensions");
      for (uint32_t i = 0; i < unit_.dimension_count; ++i) unit_.dimensions[i] = r_.ue(7);
    }
    if (has_unary_length) unit_.unary_length = static_cast<int>(r_.u(8)) + 1;
    return r_.ok() && check_shape();
  }

  bool check_shape() {
    uint64_t elements = 1;
    for (uint32_t i = 0; i < unit_.dimension_count; ++i)
      if (unit_.dimensions[i] == 0) return r_.invalid("a dimension is 0");
    for (uint32_t i = 0; i < unit_.dimension_count; ++i)
      if (!multiply(elements, unit_.dimensions[i])) return false;
    unit_.elements = elements;
    if (!(unit_.parameter_types & kDecomposed)) return true;
    if (unit_.rank == 0 || unit_.g_rows == 0)
      return r_.invalid("a decomposition has rank or rows 0");
    uint64_t of_factor = unit_.rank;
    if (!multiply(of_factor, unit_.g_rows)) return false;
    if (unit_.payload_type != kBlock && !unit_.is_separate_factor()) return true;
    if (elements % unit_.g_rows) return r_.invalid("g_number_of_rows does not divide the elements");
    of_factor = unit_.rank;
    return multiply(of_factor, unit_.h_cols());
  }

  bool multiply(uint64_t& product, uint64_t factor) {
    if (product > limits_.elements_per_tensor / factor)
      return r_.fail(NNR_LIMIT, "a tensor has more elements than the limit");
    product *= factor;
    return true;
  }

  bool read_scan() {
    if (parameters_.profile == 1 && r_.ue(1) != 0)
      return r_.fail(NNR_UNSUPPORTED, "first_tensor_dimension_shift");
    unit_.scan_order = static_cast<int>(r_.u(4));
    if (unit_.scan_order > 4) return r_.invalid("scan_order is reserved");
    if (unit_.scan_order == 0) return true;
    if (unit_.payload_type == kRawFloat) return r_.invalid("raw floats have no scan");
    UnitTensor tensors[kMaxUnitTensors];
    const int count = unit_.tensors_by_name(tensors);
    for (int i = 0; i < count && tensors[i].role <= NNR_FACTOR_H; ++i)
      unit_.entry_points += unit_.entry_points_of(tensors[i].rows);
    if (unit_.entry_points > kMaxEntryPoints) return r_.fail(NNR_LIMIT, "too many entry points");
    if (!r_.fits(unit_.entry_points, 16)) return false;
    unit_.entry_points_bit = r_.position();
    int64_t offset = 0;
    for (uint64_t i = 0; i < unit_.entry_points && r_.ok(); ++i) {
      r_.u(unit_.dependent_quantization ? 11 : 8);
      offset += i == 0 ? static_cast<int64_t>(r_.ue(11)) : r_.ie(7);
      if (offset < 0) return r_.invalid("an entry point lies before the last one");
    }
    return r_.ok();
  }

  bool check() {
    UnitTensor tensors[kMaxUnitTensors];
    if (unit_.tensors_by_name(tensors) != unit_.name_count)
      return r_.invalid("the number of names does not fit the block's contents");
    const Text &g = unit_.names[0], &h = unit_.names[1], stem = unit_.product_name();
    if (unit_.is_decomposed_block() &&
        !(g.ends_with('G') && h.ends_with('H') && h.without_last(2).equals(stem)))
      return r_.invalid("factors are not named X_G and X_H");
    if (unit_.payload_type == kRawFloat) {
      if (r_.bits_left() / 8 != 4 * tensors[0].elements())
        return r_.invalid("raw floats do not have four bytes each");
    } else if (unit_.payload_type != kInt && !parameters_.current.is_present) {
      return r_.invalid("no parameter set gives a quantization parameter");
    }
    return true;
  }

  BitReader& r_;
  const Parameters& parameters_;
  const nnr_limits& limits_;
  const ReferenceList& references_;
  Failure& failure_;
  DataUnit& unit_;
  uint64_t entries_ = 0;
};

}  // namespace

BlockRowState EntryPointReader::next() {
  BlockRowState entry;
  entry.value8 = reader_.u(8);
  entry.dq_state = has_states_ ? static_cast<int>(reader_.u(3)) : 0;
  offset_ += is_first_ ? static_cast<int64_t>(reader_.ue(11)) : reader_.ie(7);
  is_first_ = false;
  entry.position = static_cast<uint64_t>(offset_);
  return entry;
}

int DataUnit::tensors_by_name(UnitTensor* tensors) const {
  int count = 0;
  const auto add = [&](nnr_role role, uint64_t rows, uint64_t cols, const Codebook* codebook) {
    tensors[count] = {role, count < name_count ? names[count] : Text{}, rows, cols, codebook};
    ++count;
  };
  const Codebook* first = codebook_count ? &codebooks[0] : nullptr;
  const bool is_h = is_separate_factor() && names[0].ends_with('H');
  if (is_decomposed_block()) {
    add(NNR_FACTOR_G, g_rows, rank, first);
    add(NNR_FACTOR_H, rank, h_cols(), codebook_count > 1 ? &codebooks[1] : nullptr);
  } else if (is_separate_factor()) {
    add(NNR_WEIGHT, is_h ? rank : g_rows, is_h ? h_cols() : rank, first);
  } else {
    add(NNR_WEIGHT, dimensions[0], elements / dimensions[0], first);
  }
  if (payload_type != kBlock) return count;
  if (parameter_types & kLocalScaling) add(NNR_LOCAL_SCALING, dimensions[0], 1, nullptr);
  if (parameter_types & kBatchNorm)
    for (int role = NNR_BETA; role <= NNR_VAR; ++role)
      add(static_cast<nnr_role>(role), dimensions[0], 1, nullptr);
  if (parameter_types & kBias) add(NNR_BIAS, dimensions[0], 1, nullptr);
  return count;
}

int DataUnit::tensors_by_codeword(UnitTensor* tensors) const {
  static constexpr nnr_role kOrder[] = {NNR_LOCAL_SCALING, NNR_BIAS,     NNR_BETA,
                                        NNR_GAMMA,         NNR_MEAN,     NNR_VAR,
                                        NNR_WEIGHT,        NNR_FACTOR_G, NNR_FACTOR_H};
  UnitTensor by_name[kMaxUnitTensors];
  const int count = tensors_by_name(by_name);
  int next = 0;
  for (const nnr_role role : kOrder)
    for (int i = 0; i < count; ++i)
      if (by_name[i].role == role) tensors[next++] = by_name[i];
  return count;
}

bool read_data_unit(BitReader& reader, const Parameters& parameters, const nnr_limits& limits,
                    const ReferenceList& references, Failure& failure, DataUnit& unit,
                    uint64_t& header_entries) {
  HeaderReader header(reader, parameters, limits, references, failure, unit);
  const bool ok = header.read();
  header_entries += header.entries();
  return ok;
}

}  // namespace nnr::device
