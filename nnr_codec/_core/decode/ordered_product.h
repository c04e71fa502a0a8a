// Products of matrices whose sums are formed in one order, the same on every processor
// (spec/bitstream.md, "Reconstruction"; spec/model_map.md, "Factored weights").
//
// To be compiled without contraction to fused multiply-adds (-ffp-contract=off).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "processor.h"

namespace nnr {

// A matrix of binary64 numbers; its elements lie any steps apart.
template <class T>
struct Matrix {
  T* data;
  ptrdiff_t row_step;
  ptrdiff_t column_step;

  T& at(size_t row, size_t column) const {
    return data[static_cast<ptrdiff_t>(row) * row_step + static_cast<ptrdiff_t>(column) * column_step];
  }
  Matrix from(size_t row, size_t column) const { return {&at(row, column), row_step, column_step}; }
  Matrix transposed() const { return {data, column_step, row_step}; }
};

namespace product {

constexpr size_t kTileRows = 4;    // sums of a tile are kept in registers
constexpr size_t kDepth = 256;     // terms added in a row: a panel of so many rows stays in the cache
constexpr size_t kBandRows = 256;  // rows that one panel serves
constexpr size_t kFewTerms = 32;   // for which it is better to write the sums row by row

// Adds `depth` terms to each of kTileRows x kColumns sums; every sum is a lane of its own.
template <size_t kColumns>
inline void add_terms(const Matrix<const double> (&rows)[kTileRows], const double* panel, size_t depth,
                      double (&sums)[kTileRows][kColumns]) {
#if defined(__GNUC__)
  constexpr size_t kLanes = kColumns / 2;
  typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double))));
  Lanes total[kTileRows][2];
  std::memcpy(total, sums, sizeof total);
  for (size_t k = 0; k < depth; ++k) {
    Lanes right[2];
    std::memcpy(right, panel + k * kColumns, sizeof right);
    for (size_t i = 0; i < kTileRows; ++i) {
      const double left = rows[i].at(0, k);
      total[i][0] += left * right[0];
      total[i][1] += left * right[1];
    }
  }
  std::memcpy(sums, total, sizeof total);
#else
  for (size_t k = 0; k < depth; ++k) {
    for (size_t i = 0; i < kTileRows; ++i) {
      const double left = rows[i].at(0, k);
      for (size_t j = 0; j < kColumns; ++j) sums[i][j] += left * panel[k * kColumns + j];
    }
  }
#endif
}

// Copies numbers that lie `from_step` apart to where they are to lie `to_step` apart.
inline void copy(const double* from, ptrdiff_t from_step, double* to, ptrdiff_t to_step, size_t count) {
  if (from_step == 1 && to_step == 1) {
    std::memcpy(to, from, count * sizeof(double));
    return;
  }
  const ptrdiff_t end = static_cast<ptrdiff_t>(count);
  for (ptrdiff_t i = 0; i < end; ++i) to[i * to_step] = from[i * from_step];
}

// Adds up to kDepth terms to sums of up to kColumns columns.
template <size_t kColumns>
inline void add_band(Matrix<const double> left, Matrix<const double> right, Matrix<double> total,
                     size_t rows, size_t depth, size_t columns) {
  alignas(64) double panel[kDepth * kColumns];
  for (size_t k = 0; k < depth; ++k) {
    double* line = panel + k * kColumns;
    copy(&right.at(k, 0), right.column_step, line, 1, columns);
    std::fill(line + columns, line + kColumns, 0.0);
  }
  for (size_t top = 0; top < rows; top += kTileRows) {
    const size_t height = std::min(kTileRows, rows - top);
    Matrix<const double> lines[kTileRows];
    double sums[kTileRows][kColumns] = {};
    for (size_t i = 0; i < kTileRows; ++i) {
      lines[i] = left.from(top + std::min(i, height - 1), 0);  // those too many are not kept
      if (i < height) copy(&total.at(top + i, 0), total.column_step, sums[i], 1, columns);
    }
    add_terms<kColumns>(lines, panel, depth, sums);
    for (size_t i = 0; i < height; ++i) {
      copy(sums[i], 1, &total.at(top + i, 0), total.column_step, columns);
    }
  }
}

template <size_t kColumns>
inline void add_all(Matrix<const double> left, Matrix<const double> right, Matrix<double> total,
                    size_t rows, size_t rank, size_t columns) {
  const size_t band = rank < kFewTerms ? kTileRows : kBandRows;
  for (size_t top = 0; top < rows; top += band) {
    for (size_t k = 0; k < rank; k += kDepth) {  // ascending for each sum
      for (size_t start = 0; start < columns; start += kColumns) {
        add_band<kColumns>(left.from(top, k), right.from(k, start), total.from(top, start),
                           std::min(band, rows - top), std::min(kDepth, rank - k),
                           std::min(kColumns, columns - start));
      }
    }
  }
}

#if NNR_HAS_FAST_PATHS
__attribute__((target("avx2"), flatten)) inline void add_all_avx2(
    Matrix<const double> left, Matrix<const double> right, Matrix<double> total, size_t rows,
    size_t rank, size_t columns) {
  add_all<8>(left, right, total, rows, rank, columns);
}

__attribute__((target("avx512f"), flatten)) inline void add_all_avx512(
    Matrix<const double> left, Matrix<const double> right, Matrix<double> total, size_t rows,
    size_t rank, size_t columns) {
  add_all<16>(left, right, total, rows, rank, columns);
}
#endif

}  // namespace product

// total += left * right, each sum in binary64, term by term in ascending order of the rank.
//
// left: rows x rank, right: rank x columns; total overlaps neither.
inline void add_product(Matrix<const double> left, Matrix<const double> right, Matrix<double> total,
                        size_t rows, size_t rank, size_t columns) {
  if (columns < 8 && columns < rows) {  // lanes are columns: the other way round there are more
    return add_product(right.transposed(), left.transposed(), total.transposed(), columns, rank, rows);
  }
#if NNR_HAS_FAST_PATHS
  if (fast_paths_enabled && __builtin_cpu_supports("avx512f")) {
    return product::add_all_avx512(left, right, total, rows, rank, columns);
  }
  if (fast_paths_enabled && __builtin_cpu_supports("avx2")) {
    return product::add_all_avx2(left, right, total, rows, rank, columns);
  }
#endif
  product::add_all<4>(left, right, total, rows, rank, columns);
}

}  // namespace nnr
