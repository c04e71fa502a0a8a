// Python's view of the core. Arrays cross as numpy; all work runs with the GIL released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "decode/codeword.h"
#include "decode/dequantize.h"
#include "decode/ordered_product.h"
#include "encode/codeword_encoder.h"
#include "encode/common_divisor.h"
#include "encode/distortion.h"
#include "encode/quantize.h"
#include "encode/unary_length.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<int32_t, nb::numpy, nb::ndim<1>, nb::c_contig>;
using IntegersIn = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using DecodedTensor = std::tuple<int, bool, Integers>;  // qp_delta, history_enabled, integers
using EntryPoint = std::tuple<uint64_t, unsigned, int>;  // position, value8, dq_state

// TensorSyntax, with the arrays that it points to kept alive.
struct PyTensorSyntax {
  nnr::TensorSyntax syntax;
  std::optional<IntegersIn> parent;
  std::optional<Flags> history;
};

struct PyTensorToEncode {
  PyTensorSyntax tensor;
  IntegersIn levels;
  nnr::TensorToEncode coded;
};

// Zeroed pages come from the system untouched: a tensor costs memory only as it is decoded.
template <class T>
using Zeroed = std::unique_ptr<T[], decltype(&std::free)>;

template <class T>
Zeroed<T> zeroed(size_t count) {
  Zeroed<T> memory(static_cast<T*>(std::calloc(count ? count : 1, sizeof(T))), &std::free);
  if (!memory) throw std::bad_alloc();
  return memory;
}

template <class T>
nb::ndarray<T, nb::numpy, nb::ndim<1>, nb::c_contig> zeroed_array(size_t count) {
  T* data = zeroed<T>(count).release();
  nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
  return nb::ndarray<T, nb::numpy, nb::ndim<1>, nb::c_contig>(data, {count}, owner);
}

// Room for the flags of skipped rows, which is written only if the stream has such flags.
Zeroed<uint8_t> room_for_skipped_rows(const nnr::TensorSyntax& tensor) {
  return zeroed<uint8_t>(tensor.has_flags() ? tensor.rows : 0);
}

void require(bool condition, const char* message) {
  if (!condition) throw nb::value_error(message);
}

void init_tensor_syntax(PyTensorSyntax* self, uint64_t rows, uint64_t cols, int unary_length,
                        bool dependent_quantization, int scan_order, bool second_edition,
                        int64_t codebook_size, int64_t codebook_zero_offset, bool parent_present,
                        bool temporal_contexts, std::optional<IntegersIn> parent,
                        std::optional<Flags> history) {
  require(rows >= 1 && cols >= 1 && rows <= (uint64_t{1} << 40) / cols, "rows, cols: out of range");
  require(unary_length >= 1 && unary_length <= nnr::kMaxUnaryLength, "unary_length: not 1..256");
  require(scan_order >= 0 && scan_order <= 4, "scan_order: not 0..4");
  require(codebook_size >= 0 && codebook_size <= INT32_MAX &&
              codebook_zero_offset >= 0 &&
              (codebook_size == 0 || codebook_zero_offset < codebook_size),
          "codebook_size, codebook_zero_offset: out of range");
  require(!parent || parent->size() == rows * cols, "parent: wrong size");
  require(!history || history->size() == rows * cols, "history: wrong size");
  new (self) PyTensorSyntax{};
  self->syntax = {rows, cols, unary_length, dependent_quantization, scan_order, second_edition,
                  codebook_size, codebook_zero_offset, parent_present, temporal_contexts,
                  parent ? parent->data() : nullptr, history ? history->data() : nullptr};
  self->parent = std::move(parent);
  self->history = std::move(history);
}

std::vector<nnr::BlockRowState> to_block_row_states(const std::vector<EntryPoint>& entries) {
  std::vector<nnr::BlockRowState> states;
  states.reserve(entries.size());
  for (const auto& [position, value8, dq_state] : entries)
    states.push_back({position, value8, dq_state});
  return states;
}

EntryPoint to_entry_point(const nnr::BlockRowState& state) {
  return {state.position, state.value8, state.dq_state};
}

std::pair<nnr::DecodeStatus, std::vector<DecodedTensor>> decode_codeword(
    Bytes payload, const std::vector<const PyTensorSyntax*>& tensors, int qp_bits,
    const std::vector<EntryPoint>& entry_points) {
  require(qp_bits >= 0 && qp_bits <= 31, "qp_bits: not 0..31");
  const auto entries = to_block_row_states(entry_points);
  std::vector<nnr::CodedTensor> coded(tensors.size());
  std::vector<Zeroed<uint8_t>> skipped;
  std::vector<Integers> integers;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const nnr::TensorSyntax& syntax = tensors[i]->syntax;
    integers.push_back(zeroed_array<int32_t>(syntax.elements()));
    skipped.push_back(room_for_skipped_rows(syntax));
    coded[i] = {syntax, skipped[i].get(), integers[i].data()};
  }
  nnr::DecodeStatus status;
  {
    nb::gil_scoped_release release;
    status = nnr::decode_codeword(payload.data(), payload.size(), coded.data(), coded.size(),
                                  qp_bits, {entries.data(), entries.size()});
  }
  std::vector<DecodedTensor> decoded;
  for (size_t i = 0; i < coded.size(); ++i)
    decoded.emplace_back(coded[i].qp_delta, coded[i].history_enabled, integers[i]);
  return {status, std::move(decoded)};
}

// One tensor alone in its codeword, its block rows decoded in runs, each from an entry point.
class BlockRowDecoder {
 public:
  BlockRowDecoder(Bytes payload, const PyTensorSyntax& tensor, int qp_bits)
      : payload_(std::move(payload)), tensor_(tensor),
        skipped_(room_for_skipped_rows(tensor.syntax)),
        integers_(zeroed_array<int32_t>(tensor.syntax.elements())),
        preamble_(tensor_.syntax, skipped_.get()) {
    require(qp_bits >= 0 && qp_bits <= 31, "qp_bits: not 0..31");
    nb::gil_scoped_release release;
    start_ = nnr::ArithmeticDecoder(payload_.data(), payload_.size());
    qp_delta_ = nnr::read_qp_delta(start_, qp_bits);
    status_ = preamble_.read_preamble(start_);
  }

  // Decodes block rows first .. last - 1 from `entry` (its position counted from the codeword's
  // start; ignored for block row 0). With `last` = block_rows the codeword's end is checked too.
  // Returns the status and the states behind each block row (but the tensor's last).
  std::pair<nnr::DecodeStatus, std::vector<EntryPoint>> decode(uint64_t first, uint64_t last, EntryPoint entry) {
    const uint64_t block_rows = tensor_.syntax.block_rows();
    require(first < last && last <= block_rows, "first, last: out of range");
    nb::gil_scoped_release release;
    nnr::TensorDecoder tensor_decoder = preamble_;
    const auto [position, value8, entry_state] = entry;
    nnr::ArithmeticDecoder decoder =
        first == 0 ? start_
                   : nnr::ArithmeticDecoder(payload_.data(), payload_.size(), position, value8);
    int dq_state = first == 0 ? 0 : entry_state & 7;
    std::vector<EntryPoint> ends;
    nnr::DecodeStatus status = status_;
    for (uint64_t row = first; row < last && status == nnr::DecodeStatus::kOk; ++row) {
      status = tensor_decoder.decode_block_row(decoder, row, dq_state, integers_.data());
      if (row + 1 < block_rows)
        ends.push_back(to_entry_point(tensor_decoder.state_at(decoder, dq_state)));
    }
    if (status == nnr::DecodeStatus::kOk && last == block_rows)
      status = nnr::finish_codeword(decoder, payload_.size());
    return {status, std::move(ends)};
  }

  nnr::DecodeStatus status() const { return status_; }
  int qp_delta() const { return qp_delta_; }
  bool history_enabled() const { return preamble_.history_enabled(); }
  uint64_t start_position() const { return start_.position(); }
  uint64_t block_rows() const { return tensor_.syntax.block_rows(); }
  Integers integers() const { return integers_; }

 private:
  Bytes payload_;
  PyTensorSyntax tensor_;
  Zeroed<uint8_t> skipped_;
  Integers integers_;
  nnr::TensorDecoder preamble_;
  nnr::ArithmeticDecoder start_;
  nnr::DecodeStatus status_ = nnr::DecodeStatus::kOk;
  int qp_delta_ = 0;
};

int peek_qp_delta(Bytes payload, int qp_bits) {
  require(qp_bits >= 0 && qp_bits <= 31, "qp_bits: not 0..31");
  nnr::ArithmeticDecoder decoder(payload.data(), payload.size());
  return nnr::read_qp_delta(decoder, qp_bits);
}

// Turns integers into weights in their own memory.
void dequantize_in_place(Integers integers, float step) {
  nb::gil_scoped_release release;
  nnr::dequantize(integers.data(), integers.size(), step, reinterpret_cast<float*>(integers.data()));
}

nb::ndarray<float, nb::numpy, nb::ndim<1>, nb::c_contig> dequantize(IntegersIn integers, float step) {
  auto weights = zeroed_array<float>(integers.size());
  nb::gil_scoped_release release;
  nnr::dequantize(integers.data(), integers.size(), step, weights.data());
  return weights;
}

std::tuple<nb::bytes, std::vector<EntryPoint>> encode_codeword(
    const std::vector<PyTensorToEncode*>& tensors, int qp_bits) {
  require(qp_bits >= 0 && qp_bits <= 31, "qp_bits: not 0..31");
  nnr::EncodedCodeword codeword;
  {
    nb::gil_scoped_release release;
    nnr::CodewordEncoder encoder;
    for (PyTensorToEncode* tensor : tensors) {
      encoder.encode_qp_delta(tensor->coded.qp_delta, qp_bits);
      encoder.encode_tensor(tensor->coded);
    }
    codeword = encoder.finish();
  }
  std::vector<EntryPoint> entries;
  for (const nnr::BlockRowState& entry : codeword.entry_points)
    entries.push_back(to_entry_point(entry));
  return {nb::bytes(codeword.bytes.data(), codeword.bytes.size()), std::move(entries)};
}

void init_tensor_to_encode(PyTensorToEncode* self, const PyTensorSyntax& tensor, IntegersIn levels,
                           int qp_delta, bool row_skipping, bool history_enabled,
                           bool search_initialization, std::vector<uint8_t> indices) {
  require(levels.size() == tensor.syntax.elements(), "levels: wrong size");
  const nnr::ContextLayout layout{tensor.syntax.unary_length};
  require(indices.empty() || indices.size() == static_cast<size_t>(layout.count()),
          "indices: not one per context");
  for (uint8_t index : indices)
    require(index < nnr::kInitializationCount, "indices: not 0..8");
  require(!history_enabled || (tensor.syntax.parent_present && tensor.syntax.has_flags()),
          "history_enabled: no parent, or no flag that could say so");
  new (self) PyTensorToEncode{tensor, levels, {}};
  self->coded = {tensor.syntax, levels.data(), qp_delta, row_skipping, history_enabled,
                 search_initialization, std::move(indices)};
}

float largest_magnitude(Floats weights) {
  nb::gil_scoped_release release;
  return nnr::largest_magnitude(weights.data(), weights.size());
}

Integers quantize(const PyTensorSyntax& tensor, Floats weights, double step, double lambda,
                  std::optional<Floats> importance) {
  const nnr::TensorSyntax& syntax = tensor.syntax;
  require(weights.size() == syntax.elements(), "weights: wrong size");
  require(!importance || importance->size() == syntax.elements(), "importance: wrong size");
  require(step > 0 && lambda >= 0, "step, lambda: negative");
  require(syntax.codebook_size == 0, "codebook_size: quantizers know no codebook");
  // Integers, and those tried beside them, fit 32 bits. False for NaN as well.
  require(largest_magnitude(weights) < 2147483640.0 * step,
          "weights: not finite, or too large for the step");
  Integers levels = zeroed_array<int32_t>(syntax.elements());
  nb::gil_scoped_release release;
  nnr::quantize({syntax, weights.data(), importance ? importance->data() : nullptr, step, lambda},
                levels.data());
  return levels;
}

using WideRows = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WideFloats = nb::ndarray<double, nb::numpy, nb::ndim<1>, nb::c_contig>;

WideFloats common_divisors(WideRows rows, int mantissa_bits, double most) {
  const size_t count = rows.shape(0), columns = rows.shape(1);
  WideFloats divisors = zeroed_array<double>(count);
  nb::gil_scoped_release release;
  nnr::CommonDivisor divisor(mantissa_bits + 2, most);
  for (size_t row = 0; row < count; ++row) {
    divisors.data()[row] = divisor.of(rows.data() + row * columns, columns);
    if (divisors.data()[row] == 0) break;
  }
  return divisors;
}

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Blocks = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

Integers quantize_with_feedback(const PyTensorSyntax& tensor, Floats weights, double step,
                                double lambda, Blocks columns, Matrix column_weights,
                                std::optional<Matrix> rows, std::optional<Floats> row_weights) {
  const nnr::TensorSyntax& syntax = tensor.syntax;
  require(weights.size() == syntax.elements(), "weights: wrong size");
  require(step > 0 && lambda >= 0, "step, lambda: negative");
  require(syntax.codebook_size == 0, "codebook_size: quantizers know no codebook");
  require(syntax.effective_scan_order() == 0, "scan_order: errors go from row to row");
  require(syntax.is_plain(false), "parent, history: not known here");
  const uint64_t groups = columns.shape(0);
  require(groups > 0 && syntax.rows % groups == 0, "columns: no number of groups of rows");
  const uint64_t block = columns.shape(2);
  require(block > 0 && columns.shape(3) == block && columns.shape(1) * block == syntax.cols,
          "columns: wrong shape");
  require(column_weights.shape(0) == groups && column_weights.shape(1) == syntax.cols,
          "column_weights: wrong shape");
  require(!rows || (rows->shape(0) == syntax.rows && rows->shape(1) == syntax.rows),
          "rows: wrong shape");
  require(!row_weights || row_weights->size() == syntax.rows, "row_weights: wrong size");
  require(largest_magnitude(weights) < 1073741824.0 * step,
          "weights: not finite, or too large for the step");
  Integers levels = zeroed_array<int32_t>(syntax.elements());
  nb::gil_scoped_release release;
  nnr::quantize_with_feedback({syntax, weights.data(), nullptr, step, lambda},
                              {columns.data(), column_weights.data(), groups, block,
                               rows ? rows->data() : nullptr,
                               row_weights ? row_weights->data() : nullptr},
                              levels.data());
  return levels;
}

Integers reconstruct(const PyTensorToEncode& tensor) {
  Integers integers = zeroed_array<int32_t>(tensor.coded.syntax.elements());
  nb::gil_scoped_release release;
  nnr::reconstruct(tensor.coded, integers.data());
  return integers;
}

int choose_unary_length(IntegersIn levels) {
  nb::gil_scoped_release release;
  return nnr::UnaryLengthChoice(levels.data(), levels.size()).choose();
}

uint64_t count_zero_rows(IntegersIn levels, uint64_t rows) {
  require(rows >= 1 && levels.size() % rows == 0, "rows: does not divide the elements");
  const uint64_t cols = levels.size() / rows;
  nb::gil_scoped_release release;
  uint64_t count = 0;
  for (uint64_t row = 0; row < rows; ++row) count += nnr::is_zero_row(levels.data() + row * cols, cols);
  return count;
}

// (squared error, energy, largest |decoded|)
std::tuple<double, double, float> measure_distortion(const PyTensorSyntax& tensor, IntegersIn levels,
                                                     float step, Floats weights) {
  require(levels.size() == tensor.syntax.elements(), "levels: wrong size");
  require(weights.size() == tensor.syntax.elements(), "weights: wrong size");
  nb::gil_scoped_release release;
  const nnr::Distortion distortion =
      nnr::measure_distortion(tensor.syntax, levels.data(), weights.data(), step);
  return {distortion.squared_error, distortion.energy, distortion.largest};
}

using MatrixIn = nb::ndarray<const double, nb::ndim<2>, nb::device::cpu>;
using MatrixOut = nb::ndarray<double, nb::ndim<2>, nb::device::cpu>;

template <class T, class Array>
nnr::Matrix<T> matrix(const Array& array) {
  return {array.data(), static_cast<ptrdiff_t>(array.stride(0)), static_cast<ptrdiff_t>(array.stride(1))};
}

void add_product(MatrixOut total, MatrixIn left, MatrixIn right) {
  const size_t rows = left.shape(0), rank = left.shape(1), columns = right.shape(1);
  require(right.shape(0) == rank, "right: wrong size");
  require(total.shape(0) == rows && total.shape(1) == columns, "total: wrong size");
  if (rows == 0 || rank == 0 || columns == 0) return;
  nb::gil_scoped_release release;
  nnr::add_product(matrix<const double>(left), matrix<const double>(right), matrix<double>(total), rows,
                   rank, columns);
}

bool allow_fast_paths(bool allowed) {
  nnr::fast_paths_enabled = allowed && nnr::has_fast_instructions();
  return nnr::fast_paths_enabled;
}

uint64_t count_bins(const PyTensorToEncode& tensor) {
  nb::gil_scoped_release release;
  return nnr::count_bins(tensor.coded);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "DeepCABAC: arithmetic coding and quantization of tensors of integers.";

  nb::enum_<nnr::DecodeStatus>(m, "DecodeStatus", nb::is_arithmetic(), "What decoding came to.")
      .value("OK", nnr::DecodeStatus::kOk)
      .value("TRUNCATED", nnr::DecodeStatus::kTruncated)
      .value("INTEGER_OVERFLOW", nnr::DecodeStatus::kIntegerOverflow)
      .value("ENTRY_POINT_MISMATCH", nnr::DecodeStatus::kEntryPointMismatch)
      .value("NOT_TERMINATED", nnr::DecodeStatus::kNotTerminated)
      .value("BAD_STOP_BIT", nnr::DecodeStatus::kBadStopBit)
      .value("VALUE_OUT_OF_RANGE", nnr::DecodeStatus::kValueOutOfRange)
      .value("TRAILING_BYTES", nnr::DecodeStatus::kTrailingBytes);

  nb::class_<PyTensorSyntax>(m, "TensorSyntax", "What a data unit's header says of one tensor.")
      .def("__init__", &init_tensor_syntax, "rows"_a, "cols"_a, nb::kw_only(), "unary_length"_a = 10,
           "dependent_quantization"_a = false, "scan_order"_a = 0, "second_edition"_a = false,
           "codebook_size"_a = 0, "codebook_zero_offset"_a = 0, "parent_present"_a = false,
           "temporal_contexts"_a = false, "parent"_a = nb::none(), "history"_a = nb::none())
      .def_prop_ro("elements", [](const PyTensorSyntax& t) { return t.syntax.elements(); })
      .def_prop_ro("block_rows", [](const PyTensorSyntax& t) { return t.syntax.block_rows(); });

  nb::class_<BlockRowDecoder>(m, "BlockRowDecoder",
                              "A tensor whose block rows are decoded from their entry points.")
      .def(nb::init<Bytes, const PyTensorSyntax&, int>(), "payload"_a, "tensor"_a, "qp_bits"_a)
      .def("decode", &BlockRowDecoder::decode, "first"_a, "last"_a, "entry"_a)
      .def_prop_ro("status", &BlockRowDecoder::status)
      .def_prop_ro("qp_delta", &BlockRowDecoder::qp_delta)
      .def_prop_ro("history_enabled", &BlockRowDecoder::history_enabled)
      .def_prop_ro("start_position", &BlockRowDecoder::start_position)
      .def_prop_ro("block_rows", &BlockRowDecoder::block_rows)
      .def_prop_ro("integers", &BlockRowDecoder::integers, nb::rv_policy::reference);

  nb::class_<PyTensorToEncode>(m, "TensorToEncode", "One tensor's integers, and how to code them.")
      .def("__init__", &init_tensor_to_encode, "tensor"_a, "levels"_a, nb::kw_only(),
           "qp_delta"_a = 0, "row_skipping"_a = false, "history_enabled"_a = false,
           "search_initialization"_a = true, "indices"_a = std::vector<uint8_t>{})
      .def("reconstruct", &reconstruct, "The integers that a decoder finds for the levels.")
      .def("count_bins", &count_bins, "Bins that the levels are coded as, bypass bins included.")
      .def_prop_ro("indices", [](const PyTensorToEncode& t) { return t.coded.indices; });

  m.def("decode_codeword", &decode_codeword, "payload"_a, "tensors"_a, "qp_bits"_a,
        "entry_points"_a,
        "Decodes a codeword; returns a DecodeStatus and, per tensor, (qp_delta, history_enabled, "
        "integers).");
  m.def("peek_qp_delta", &peek_qp_delta, "payload"_a, "qp_bits"_a,
        "The qp_delta of a codeword's first tensor, without decoding the rest.");
  m.def("encode_codeword", &encode_codeword, "tensors"_a, "qp_bits"_a,
        "Encodes a codeword; returns its bytes and entry points.");
  m.def("quantize", &quantize, "tensor"_a, "weights"_a, "step"_a, "lambda_"_a = 0.0,
        "importance"_a = nb::none(),
        "Quantizes weights: the integers to code.");
  m.def("quantize_with_feedback", &quantize_with_feedback, "tensor"_a, "weights"_a, "step"_a,
        "lambda_"_a, "columns"_a, "column_weights"_a, "rows"_a = nb::none(),
        "row_weights"_a = nb::none(),
        "Quantizes weights, whose errors later columns and rows make up for.");
  m.def("largest_magnitude", &largest_magnitude, "weights"_a,
        "The largest |weight|; NaN if any weight is NaN.");
  m.def("common_divisors", &common_divisors, "rows"_a, "mantissa_bits"_a, "most"_a,
        "For each row a number that its values, rounded to that many bits behind the point, are "
        "multiples of, at most `most`; infinity for zeros; 0 without, and for the rows below.");
  m.def("choose_unary_length", &choose_unary_length, "levels"_a,
        "A number of greater-than flags for these integers.");
  m.def("count_zero_rows", &count_zero_rows, "levels"_a, "rows"_a,
        "How many rows of a matrix hold zeros alone.");
  m.def("measure_distortion", &measure_distortion, "tensor"_a, "levels"_a, "step"_a,
        "weights"_a,
        "Squared error of what levels decode to, the weights' energy, and the largest |decoded|.");
  m.def("allow_fast_paths", &allow_fast_paths, "allowed"_a,
        "Whether paths for newer processors may be taken (default: yes); returns whether they are. "
        "For tests: they change nothing but the speed.");
  m.def("add_product", &add_product, "total"_a.noconvert(), "left"_a.noconvert(),
        "right"_a.noconvert(),
        "Adds the product of two float64 matrices to a third one, each sum term by term.");
  m.def("dequantize_in_place", &dequantize_in_place, "integers"_a.noconvert(), "step"_a,
        "Replaces integers by float32 step times integers, whose bits they then are.");
  m.def("dequantize", &dequantize, "integers"_a, "step"_a, "float32 step times integers.");
}
