// Runs the core on random input, to be compiled with sanitizers: sanitize ROUNDS SEED.
//
// Every buffer that the core gets is a heap block of its exact size, so that a read or write one
// element too far is seen. What must come out (a status, or what went in) is checked as well.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "decode/codeword.h"
#include "decode/dequantize.h"
#include "encode/codeword_encoder.h"
#include "encode/feedback_trellis.h"
#include "encode/quantize.h"

namespace {

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "line %d: %s, round %d\n", __LINE__, #condition, round_number); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (false)

int round_number = 0;

struct Random {
  uint64_t state;

  uint64_t next() {  // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t limit) { return next() % limit; }
  bool coin() { return next() & 1; }
  bool rarely() { return below(8) == 0; }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // 0 .. 1
};

// A heap block of exactly `size` elements; freed blocks and neighbours are the sanitizer's.
template <class T>
struct Exact {
  explicit Exact(size_t size) : data(static_cast<T*>(std::malloc(size * sizeof(T)))), size(size) {
    if (size) std::memset(static_cast<void*>(data), 0, size * sizeof(T));
  }
  explicit Exact(const std::vector<T>& values) : Exact(values.size()) {
    if (size) std::memcpy(data, values.data(), size * sizeof(T));
  }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
  ~Exact() { std::free(data); }

  T* data;
  size_t size;
};

// A tensor's syntax together with the arrays that it points to.
struct Tensor {
  nnr::TensorSyntax syntax;
  std::unique_ptr<Exact<int32_t>> parent;
  std::unique_ptr<Exact<uint8_t>> history;
};

Tensor random_tensor(Random& random) {
  static const int kUnaryLengths[] = {1, 2, 3, 10, 11, 40, 255, 256};
  Tensor tensor;
  nnr::TensorSyntax& syntax = tensor.syntax;
  syntax.rows = 1 + random.below(random.rarely() ? 200 : 40);
  syntax.cols = 1 + random.below(random.rarely() ? 200 : 40);
  if (random.rarely()) syntax.cols = 1;
  syntax.unary_length = kUnaryLengths[random.below(8)];
  syntax.dependent_quantization = random.coin();
  syntax.scan_order = static_cast<int>(random.below(5));
  syntax.second_edition = random.coin();
  if (random.below(3) == 0) {
    static const int64_t kSizes[] = {1, 2, 3, 5, 12, 30, 600, INT32_MAX};
    syntax.codebook_size = kSizes[random.below(8)];
    const int64_t ends[] = {0, syntax.codebook_size - 1,
                            static_cast<int64_t>(random.below(static_cast<uint64_t>(syntax.codebook_size)))};
    syntax.codebook_zero_offset = ends[random.below(3)];
  }
  syntax.parent_present = syntax.second_edition && random.coin();
  syntax.temporal_contexts = syntax.parent_present && random.coin();
  if (syntax.parent_present && random.coin()) {
    static const int32_t kParents[] = {0, 0, 0, 1, -1, 2, -2, 300, INT32_MAX, INT32_MIN};
    tensor.parent = std::make_unique<Exact<int32_t>>(syntax.elements());
    tensor.history = std::make_unique<Exact<uint8_t>>(syntax.elements());
    for (size_t i = 0; i < syntax.elements(); ++i) {
      tensor.parent->data[i] = kParents[random.below(10)];
      tensor.history->data[i] = random.coin();
    }
    syntax.parent = tensor.parent->data;
    if (random.coin()) syntax.history = tensor.history->data;
  }
  return tensor;
}

// Integers that the tensor can code, of random size and sparsity.
std::vector<int32_t> random_levels(Random& random, const nnr::TensorSyntax& syntax) {
  std::vector<int32_t> levels(syntax.elements());
  const int bits = static_cast<int>(random.below(30));
  const uint64_t sparsity = 1 + random.below(20);
  for (int32_t& level : levels) {
    if (random.below(sparsity)) continue;
    const auto magnitude = static_cast<int32_t>(random.below(uint64_t{1} << bits) + 1);
    level = random.coin() ? magnitude : -magnitude;
    if (syntax.codebook_size)
      level = static_cast<int32_t>(random.below(static_cast<uint64_t>(syntax.codebook_size))) -
              static_cast<int32_t>(syntax.codebook_zero_offset);
    if (syntax.codebook_size == INT32_MAX) level /= 4;  // room for the doubling
  }
  for (uint64_t row = 0; row < syntax.rows; ++row)
    if (random.below(3) == 0)
      std::memset(levels.data() + row * syntax.cols, 0, syntax.cols * sizeof(int32_t));
  return levels;
}

// Room for what the decoder writes, and the decoding itself.
struct Decoding {
  explicit Decoding(const nnr::TensorSyntax& syntax)
      : integers(syntax.elements()), skipped(syntax.has_flags() ? syntax.rows : 0) {
    tensor.syntax = syntax;
    tensor.integers = integers.data;
    tensor.skipped_rows = skipped.data;
  }

  nnr::DecodeStatus run(const Exact<uint8_t>& payload, int qp_bits,
                        const std::vector<nnr::BlockRowState>& entries) {
    return nnr::decode_codeword(payload.data, payload.size, &tensor, 1, qp_bits,
                                {entries.data(), entries.size()});
  }

  Exact<int32_t> integers;
  Exact<uint8_t> skipped;
  nnr::CodedTensor tensor;
};

// Any bytes: straight through, and a block row from any entry point.
void decode_anything(Random& random, const nnr::TensorSyntax& syntax, const std::vector<uint8_t>& bytes) {
  const Exact<uint8_t> payload(bytes);
  std::vector<nnr::BlockRowState> entries(random.coin() ? 0 : random.below(6));
  for (nnr::BlockRowState& entry : entries)
    entry = {random.next(), static_cast<unsigned>(random.below(256)), static_cast<int>(random.below(8))};
  Decoding decoding(syntax);
  decoding.run(payload, static_cast<int>(random.below(32)), entries);

  Exact<uint8_t> skipped(syntax.has_flags() ? syntax.rows : 0);
  nnr::ArithmeticDecoder start(payload.data, payload.size);
  nnr::TensorDecoder preamble(syntax, skipped.data);
  if (preamble.read_preamble(start) != nnr::DecodeStatus::kOk) return;
  const uint64_t position = random.rarely() ? random.next() >> 4 : random.below(8 * bytes.size() + 40);
  nnr::ArithmeticDecoder decoder(payload.data, payload.size, position,
                                 static_cast<unsigned>(random.below(256)));
  Exact<int32_t> integers(syntax.elements());
  int dq_state = static_cast<int>(random.below(8));
  preamble.decode_block_row(decoder, random.below(syntax.block_rows()), dq_state, integers.data);
  nnr::finish_codeword(decoder, payload.size);
  CHECK(dq_state >= 0 && dq_state < nnr::kDqStates);
}

std::vector<uint8_t> random_bytes(Random& random) {
  std::vector<uint8_t> bytes(random.below(random.rarely() ? 600 : 40));
  const int kind = static_cast<int>(random.below(4));
  for (uint8_t& byte : bytes)
    byte = kind == 0 ? 0 : kind == 1 ? 0xff : static_cast<uint8_t>(random.next());
  return bytes;
}

void round_trip(Random& random) {
  const Tensor tensor = random_tensor(random);
  const nnr::TensorSyntax& syntax = tensor.syntax;
  const std::vector<int32_t> values = random_levels(random, syntax);
  const Exact<int32_t> levels(values);
  nnr::TensorToEncode source;
  source.syntax = syntax;
  source.levels = levels.data;
  source.qp_delta = static_cast<int32_t>(random.below(256)) - 128;
  source.row_skipping = random.coin();
  source.history_enabled = syntax.parent_present && syntax.has_flags() && random.coin();
  source.search_initialization = random.coin();
  if (!source.search_initialization && random.coin()) {
    source.indices.resize(nnr::ContextLayout{syntax.unary_length}.count());
    for (uint8_t& index : source.indices) index = static_cast<uint8_t>(random.below(9));
  }
  Exact<int32_t> expected(syntax.elements());
  nnr::reconstruct(source, expected.data);
  nnr::CodewordEncoder encoder;
  encoder.encode_qp_delta(source.qp_delta, 8);
  encoder.encode_tensor(source);
  nnr::EncodedCodeword coded = encoder.finish();

  Decoding decoding(syntax);
  CHECK(decoding.run(Exact<uint8_t>(coded.bytes), 8, coded.entry_points) == nnr::DecodeStatus::kOk);
  CHECK(decoding.tensor.qp_delta == source.qp_delta);
  CHECK(std::memcmp(decoding.integers.data, expected.data, expected.size * sizeof(int32_t)) == 0);

  for (int i = 0; i < 4; ++i) {
    std::vector<uint8_t> damaged = coded.bytes;
    damaged[random.below(damaged.size())] ^= static_cast<uint8_t>(1 + random.below(255));
    if (random.coin()) damaged.resize(random.below(damaged.size() + 1));
    decode_anything(random, syntax, damaged);
  }
}

void quantize(Random& random) {
  Tensor tensor = random_tensor(random);
  nnr::TensorSyntax& syntax = tensor.syntax;
  syntax.codebook_size = syntax.codebook_zero_offset = 0;
  const double step = std::ldexp(1.0 + random.unit(), static_cast<int>(random.below(40)) - 30);
  // Up to the largest weight that a quantizer is to take.
  const double size = random.rarely() ? 2147483000.0 : std::ldexp(1.0, static_cast<int>(random.below(20)) - 4);
  Exact<float> weights(syntax.elements());
  Exact<float> importance(syntax.elements());
  for (size_t i = 0; i < weights.size; ++i) {
    weights.data[i] = static_cast<float>((2 * random.unit() - 1) * size * step);
    if (random.rarely()) weights.data[i] = 0;
    importance.data[i] = random.rarely() ? 0 : static_cast<float>(random.unit() * 10);
  }
  const double lambdas[] = {0, 0.01, 0.3, 10, 1e12};
  const nnr::QuantizerInput input{syntax, weights.data, random.coin() ? importance.data : nullptr,
                                  step, lambdas[random.below(5)]};
  Exact<int32_t> levels(syntax.elements());
  nnr::quantize(input, levels.data);
  for (size_t i = 0; i < levels.size; ++i) {
    const double reach = std::fabs(input.scaled(i)) + 4;
    CHECK(std::fabs(static_cast<double>(levels.data[i])) <= reach);
  }
  Exact<float> decoded(syntax.elements());
  nnr::dequantize(levels.data, levels.size, static_cast<float>(step), decoded.data);
}

// The search with feedback, in blocks of columns and groups of rows of any number; what newer
// processors find is what all do.
void quantize_with_feedback(Random& random) {
  const uint64_t groups = 1 + random.below(3), block = 1 + random.below(40);
  nnr::TensorSyntax syntax;
  syntax.rows = groups * (1 + random.below(5));
  syntax.cols = block * (1 + random.below(3));
  syntax.unary_length = static_cast<int>(1 + random.below(12));
  syntax.dependent_quantization = random.coin();
  const uint64_t rows = syntax.rows, cols = syntax.cols;
  Exact<float> weights(rows * cols), columns(groups * cols * block), column_weights(groups * cols);
  Exact<float> of_rows(rows * rows), row_weights(rows);
  const double reach = std::pow(10, random.below(9));  // in steps
  for (size_t i = 0; i < weights.size; ++i)
    weights.data[i] = static_cast<float>((2 * random.unit() - 1) * reach);
  for (Exact<float>* feedback : {&columns, &of_rows})
    for (size_t i = 0; i < feedback->size; ++i)
      feedback->data[i] = static_cast<float>(2 * random.unit() - 1);
  for (Exact<float>* factors : {&column_weights, &row_weights})
    for (size_t i = 0; i < factors->size; ++i)
      factors->data[i] = static_cast<float>(2 * random.unit());
  const double lambdas[] = {0, 0.01, 10};
  const nnr::QuantizerInput input{syntax, weights.data, nullptr, 1, lambdas[random.below(3)]};
  const nnr::ErrorFeedback feedback{columns.data, column_weights.data, groups, block,
                                    random.coin() ? of_rows.data : nullptr,
                                    random.coin() ? row_weights.data : nullptr};
  Exact<int32_t> levels(rows * cols), plain(rows * cols);
  nnr::quantize_with_feedback(input, feedback, levels.data);
  nnr::fast_paths_enabled = false;
  nnr::quantize_with_feedback(input, feedback, plain.data);
  nnr::fast_paths_enabled = nnr::has_fast_instructions();
  CHECK(std::memcmp(levels.data, plain.data, levels.size * sizeof(int32_t)) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int rounds = std::atoi(argv[1]);
  Random random{std::strtoull(argv[2], nullptr, 10)};
  for (; round_number < rounds; ++round_number) {
    for (int i = 0; i < 8; ++i) {
      const Tensor tensor = random_tensor(random);
      decode_anything(random, tensor.syntax, random_bytes(random));
    }
    round_trip(random);
    if (round_number % 4 == 0) quantize(random);
    if (round_number % 4 == 1) quantize_with_feedback(random);
  }
  std::printf("%d rounds\n", rounds);
}
