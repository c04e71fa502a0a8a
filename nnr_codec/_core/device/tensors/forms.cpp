#include "forms.h"

#if NNR_WITH_DC

namespace nnr::device {

namespace {

constexpr uint64_t kMany = uint64_t{1} << 62;  // numbers above it are all the same to limits

uint64_t times(uint64_t a, uint64_t b) { return a && b > kMany / a ? kMany : a * b; }
uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

// What checking a weight's factors takes: its dimensions as T, S, d1, d2.
struct Kernel {
  uint64_t t, s, d1, d2;
  uint64_t elements, taps;
};

bool matches(const Shape& shape, uint32_t count, uint64_t a, uint64_t b, uint64_t c = 1,
             uint64_t d = 1) {
  const uint64_t expected[] = {a, b, c, d};
  if (shape.count != count) return false;
  for (uint32_t i = 0; i < count; ++i)
    if (shape.dimensions[i] != expected[i]) return false;
  return true;
}

bool is_rank(uint64_t rank, uint64_t most) { return rank >= 1 && rank <= most; }

bool check_low_rank(const Shape* f, const Kernel& k, uint64_t& operations) {
  const uint64_t rest = k.elements / k.t, rank = f[0].count == 2 ? f[0].dimensions[1] : 0;
  operations = times(rank, k.elements);
  return is_rank(rank, least(k.t, rest)) && matches(f[0], 2, k.t, rank) &&
         matches(f[1], 2, rank, rest);
}

bool check_cp(const Shape* f, const Weight& weight, const Kernel& k, uint64_t& operations) {
  uint64_t largest = 0;
  for (uint32_t i = 0; i < weight.shape.count; ++i)
    if (weight.shape.dimensions[i] > largest) largest = weight.shape.dimensions[i];
  const uint64_t rank = f[0].count == 2 ? f[0].dimensions[1] : 0;
  operations = times(rank, k.elements + 2 * (k.elements / k.t));
  bool fits = weight.shape.count >= 3 && is_rank(rank, k.elements / largest) &&
              static_cast<uint32_t>(weight.factor_count) == weight.shape.count;
  for (uint32_t i = 0; fits && i < weight.shape.count; ++i)
    fits = matches(f[i], 2, weight.shape.dimensions[i], rank);
  return fits;
}

bool check_tucker2(const Shape* f, const Weight& weight, const Kernel& k, uint64_t& operations) {
  const uint32_t count = weight.shape.count;
  if (weight.factor_count != 3 || count < 3 || count > 4 || f[0].count != count) return false;
  const uint64_t a = f[0].dimensions[0], b = f[0].dimensions[1];
  operations = times(times(k.t, b), times(a + k.s, k.taps));
  return is_rank(a, least(k.t, k.s * k.taps)) && is_rank(b, least(k.s, k.t * k.taps)) &&
         matches(f[0], count, a, b, k.d1, k.d2) && matches(f[1], 2, k.t, a) &&
         matches(f[2], 2, k.s, b);
}

bool check_ht2(const Shape* f, const Weight& weight, const Kernel& k, uint64_t& operations) {
  if (weight.factor_count != 4 || weight.shape.count != 4) return false;
  if (f[0].count != 2 || f[1].count != 3 || f[3].count != 2) return false;
  const uint64_t a = f[0].dimensions[1], b = f[1].dimensions[2], c = f[3].dimensions[1];
  const uint64_t left = times(times(k.s, a), k.d1), right = times(times(k.t, c), k.d2);
  operations = times(b, least(kMany, left + right + k.elements));
  return is_rank(a, least(k.s, k.t * k.d1 * k.d2)) && is_rank(b, least(k.s * k.d1, k.t * k.d2)) &&
         is_rank(c, least(k.t, k.s * k.d1 * k.d2)) && matches(f[0], 2, k.s, a) &&
         matches(f[1], 3, a, k.d1, b) && matches(f[2], 3, b, c, k.d2) && matches(f[3], 2, k.t, c);
}

bool check_joint(const Shape* f, const Weight& weight, const Kernel& k, uint64_t& operations) {
  const bool is_binary = weight.form == Form::kJointBinary;
  const uint64_t rows = k.d1 * k.s, cols = k.d2 * k.t;
  if (weight.factor_count != (is_binary ? 4 : 2) || weight.shape.count > 4) return false;
  uint64_t ranks = 0;
  for (int i = 0; i < weight.factor_count; i += 2) {
    const uint64_t rank = f[i].count == 2 ? f[i].dimensions[1] : 0;
    const bool is_right = weight.form == Form::kJointRight || (is_binary && i == 0);
    if (!is_rank(rank, is_right ? cols : rows) || !matches(f[i], 2, rows, rank) ||
        !matches(f[i + 1], 2, rank, cols))
      return false;
    ranks += rank;
  }
  operations = times(ranks, k.elements);
  return true;
}

}  // namespace

bool check_factors(const Weight& weight, uint64_t& operations, Failure& failure) {
  Shape f[kMaxFactors];
  for (int i = 0; i < weight.factor_count; ++i) f[i] = weight.factors[i]->coded_shape;
  const Shape& shape = weight.shape;
  const auto size = [&](uint32_t i) { return i < shape.count ? shape.dimensions[i] : 1; };
  const uint64_t elements = shape.elements();
  const Kernel kernel{size(0), size(1),  size(2),
                      size(3), elements, shape.count < 2 ? 1 : elements / (size(0) * size(1))};
  bool fits = shape.count >= 2;
  switch (weight.form) {
    case Form::kLowRank:
      fits = fits && weight.factor_count == 2 && check_low_rank(f, kernel, operations);
      break;
    case Form::kCp: fits = fits && check_cp(f, weight, kernel, operations); break;
    case Form::kTucker2: fits = fits && check_tucker2(f, weight, kernel, operations); break;
    case Form::kHt2: fits = fits && check_ht2(f, weight, kernel, operations); break;
    default: fits = fits && check_joint(f, weight, kernel, operations);
  }
  return fits || failure.invalid("factors do not have the shapes of their form");
}

double Product::Line::at(uint64_t i) const {
  const uint64_t index = first + i * step;
  const uint8_t* data = static_cast<const uint8_t*>(factor->data);
  if (factor->type == NNR_FLOAT32)
    return static_cast<double>(bits_cast<float>(static_cast<const uint32_t*>(factor->data)[index]));
  return load_number(data + index * type_info(factor->type).size, factor->type);
}

double Product::dot(const Line& left, const Line& right, uint64_t count) {
  double sum = 0;
  for (uint64_t i = 0; i < count; ++i) sum += left.at(i) * right.at(i);
  return sum;
}

double Product::dot(const Line& left, const double* right, uint64_t step, uint64_t count) {
  double sum = 0;
  for (uint64_t i = 0; i < count; ++i) sum += left.at(i) * right[i * step];
  return sum;
}

void Product::start(const StoredTensor& g, const StoredTensor& h) {
  form_ = Form::kLowRank;
  factors_[0] = &g;
  factors_[1] = &h;
  cols_ = h.shape.dimensions[1];
}

#if NNR_WITH_MAP

bool Product::start(const Weight& weight, Failure& failure) {
  form_ = weight.form;
  factor_count_ = weight.factor_count;
  for (int i = 0; i < factor_count_; ++i) factors_[i] = weight.factors[i]->stored;
  for (uint32_t i = 0; i < 4; ++i)
    shape_[i] = i < weight.shape.count ? weight.shape.dimensions[i] : 1;
  cols_ = weight.shape.elements() / shape_[0];
  row_formed_ = UINT64_MAX;
  uint64_t parts = 0, row = 0;
  if (form_ == Form::kTucker2) row = factors_[2]->shape.dimensions[1] * shape_[2] * shape_[3];
  if (form_ == Form::kHt2) {
    const uint64_t middle = factors_[1]->shape.dimensions[2];
    parts = shape_[1] * shape_[2] * middle;
    row = middle * shape_[3];
  }
  if (!parts_.allocate(parts) || !row_.allocate(row)) return failure.no_memory();
  form_parts();
  return true;
}

// Of ht2: x[s, i, b], the sums over a of U[s, a] L[a, i, b].
void Product::form_parts() {
  if (form_ != Form::kHt2) return;
  const uint64_t rank = factors_[0]->shape.dimensions[1];
  const uint64_t cols = shape_[2] * factors_[1]->shape.dimensions[2];
  for (uint64_t s = 0; s < shape_[1]; ++s)
    for (uint64_t column = 0; column < cols; ++column)
      parts_[static_cast<size_t>(s * cols + column)] =
          dot({factors_[0], s * rank, 1}, Line{factors_[1], column, cols}, rank);
}

// Of tucker2: x[t, b, …], the sums over a of U[t, a] core[a, b, …]; of ht2: y[b, t, j], those over
// c of V[t, c] N[b, c, j].
void Product::form_row(uint64_t t) {
  if (row_formed_ == t) return;
  row_formed_ = t;
  const bool is_tucker = form_ == Form::kTucker2;
  const StoredTensor* outputs = factors_[is_tucker ? 1 : 3];
  const uint64_t rank = outputs->shape.dimensions[1], taps = shape_[3];
  for (size_t i = 0; i < row_.size(); ++i) {
    const Line core = is_tucker ? Line{factors_[0], i, row_.size()}
                                : Line{factors_[2], i / taps * rank * taps + i % taps, taps};
    row_[i] = dot({outputs, t * rank, 1}, core, rank);
  }
}

double Product::row_element(const uint64_t (&place)[4]) const {
  const auto [t, s, i, j] = place;
  if (form_ == Form::kTucker2) {
    const uint64_t rank = factors_[2]->shape.dimensions[1], taps = shape_[2] * shape_[3];
    return dot({factors_[2], s * rank, 1}, row_.data() + (i * shape_[3] + j), taps, rank);
  }
  const uint64_t middle = factors_[1]->shape.dimensions[2];
  const double* x = parts_.data() + (s * shape_[2] + i) * middle;
  double sum = 0;
  for (uint64_t b = 0; b < middle; ++b) sum += x[b] * row_[static_cast<size_t>(b * shape_[3] + j)];
  return sum;
}

double Product::cp_element(const uint64_t (&place)[4]) const {
  const uint64_t rank = factors_[0]->shape.dimensions[1];
  int largest = 0;
  for (int k = 1; k < factor_count_; ++k)
    if (shape_[k] > shape_[largest]) largest = k;
  double sum = 0;
  for (uint64_t r = 0; r < rank; ++r) {
    double others = 1;
    for (int k = 0; k < factor_count_; ++k)
      if (k != largest) others *= Line{factors_[k], place[k] * rank, 1}.at(r);
    sum += Line{factors_[largest], place[largest] * rank, 1}.at(r) * others;
  }
  return sum;
}

double Product::joint_element(const uint64_t (&place)[4]) const {
  const auto [t, s, i, j] = place;
  const uint64_t row = i * shape_[1] + s, column = j * shape_[0] + t, cols = shape_[3] * shape_[0];
  double sum = 0;
  for (int k = 0; k < factor_count_; k += 2) {
    const uint64_t rank = factors_[k]->shape.dimensions[1];
    const double product =
        dot({factors_[k], row * rank, 1}, Line{factors_[k + 1], column, cols}, rank);
    sum = k == 0 ? product : sum + product;
  }
  return sum;
}

#endif

float Product::element(uint64_t index) {
  if (form_ == Form::kLowRank) {
    const uint64_t rank = factors_[0]->shape.dimensions[1];
    return static_cast<float>(
        dot({factors_[0], index / cols_ * rank, 1}, Line{factors_[1], index % cols_, cols_}, rank));
  }
#if NNR_WITH_MAP
  uint64_t place[4];
  for (int k = 3; k >= 0; --k) {
    place[k] = index % shape_[k];
    index /= shape_[k];
  }
  if (form_ == Form::kCp) return static_cast<float>(cp_element(place));
  if (form_ != Form::kTucker2 && form_ != Form::kHt2)
    return static_cast<float>(joint_element(place));
  form_row(place[0]);
  return static_cast<float>(row_element(place));
#else
  return 0;
#endif
}

}  // namespace nnr::device

#endif
