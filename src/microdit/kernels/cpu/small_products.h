// Products of matrices that lie in the cache, too small for a library: tiles of sums in registers, each of which goes
// where it is told to when it is complete.
#pragma once
#include "registers.h"

#include <ATen/cpu/vec/vec.h>

// Rows and columns of tensors are padded to this, so that registers find them aligned, as at::empty is. It is what
// at::vec transposes at once, and one or two registers.
constexpr int64_t PADDING = 16;
// A product's tile: 6 x 2 sums, 2 columns and a factor are 15 of AVX2's 16 registers; AVX-512 has 32.
constexpr int64_t TILE_ROWS = LANES < 16 ? 6 : 8, TILE_REGISTERS = 2;
static_assert(PADDING % LANES == 0);

inline int64_t padded(int64_t size) { return (size + PADDING - 1) / PADDING * PADDING; }

// The right factor of a product: [depth, columns] in strips of PADDING columns, each with its own rows.
struct Strips {
  const float* data;
  int64_t row, strip;  // from one row, and from one strip, to the next
  const float* at(int64_t column) const { return data + column / PADDING * strip + column % PADDING; }
};

inline Strips row_by_row(const float* data, int64_t columns) { return {data, columns, PADDING}; }

// The left factor of a product, [rows, depth]; read with any strides, so also transposed.
struct Left {
  const float* data;
  int64_t row, column;
  Left from(int64_t r) const { return {data + r * row, row, column}; }
};

// What becomes of a product's sums: they begin with `first`, and `last` takes those of one row, side by side.
// Here they are c, or are added to it.
template <bool accumulate>
struct Stored {
  float* c;
  int64_t row;
  Register* at(int64_t r, int64_t column) const { return reinterpret_cast<Register*>(c + r * row + column); }
  Register first(int64_t r, int64_t column) const { return accumulate ? *at(r, column) : Register{}; }
  template <int64_t registers>
  void last(int64_t r, int64_t column, const Register (&sums)[registers]) const {
#pragma GCC unroll 2
    for (int64_t j = 0; j < registers; ++j) at(r, column)[j] = sums[j];
  }
};

// Rows i .. i + rows - 1 of a [rows, depth] b [depth, columns], and the `registers` * LANES columns from `column` on.
template <int64_t rows, int64_t registers, typename Result>
C10_ALWAYS_INLINE void multiply_tile(const Left& a, int64_t i, const Strips& b, int64_t column, int64_t depth,
                                     const Result& result) {
  const Left left = a.from(i);
  const float* columns[registers];
  Register sums[rows][registers];
#pragma GCC unroll 2
  for (int64_t j = 0; j < registers; ++j) {
    columns[j] = b.at(column + j * LANES);
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) sums[r][j] = result.first(i + r, column + j * LANES);
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    Register right[registers];
#pragma GCC unroll 2
    for (int64_t j = 0; j < registers; ++j) right[j] = *reinterpret_cast<const Register*>(columns[j] + k * b.row);
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) {
      const float factor = left.data[r * left.row + k * left.column];
#pragma GCC unroll 2
      for (int64_t j = 0; j < registers; ++j) sums[r][j] += factor * right[j];
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < rows; ++r) result.template last<registers>(i + r, column, sums[r]);
}

// The same for fewer rows than a whole tile has.
template <int64_t most, int64_t registers, typename Result>
void multiply_rest(int64_t rows, const Left& a, int64_t i, const Strips& b, int64_t column, int64_t depth,
                   const Result& result) {
  if constexpr (most > 0) {
    if (rows == most)
      multiply_tile<most, registers>(a, i, b, column, depth, result);
    else
      multiply_rest<most - 1, registers>(rows, a, i, b, column, depth, result);
  }
}

// The same for any number of rows.
template <int64_t registers, typename Result>
C10_ALWAYS_INLINE void multiply_columns(int64_t rows, const Left& a, const Strips& b, int64_t column, int64_t depth,
                                        const Result& result) {
  int64_t i = 0;
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
    multiply_tile<TILE_ROWS, registers>(a, i, b, column, depth, result);
  multiply_rest<TILE_ROWS - 1, registers>(rows - i, a, i, b, column, depth, result);
}

// The product of a [rows, depth] and b [depth, columns]; columns are a multiple of PADDING.
template <typename Result>
void multiply(int64_t rows, int64_t columns, int64_t depth, const Left& a, const Strips& b, const Result& result) {
  int64_t j = 0;
  for (; j + TILE_REGISTERS * LANES <= columns; j += TILE_REGISTERS * LANES)
    multiply_columns<TILE_REGISTERS>(rows, a, b, j, depth, result);
  if (j < columns) multiply_columns<1>(rows, a, b, j, depth, result);
}

// from [rows, columns], both multiples of PADDING, as [columns, rows] in strips; they lie in `to`. Row by row, the
// lines of a long product's strip would compete for the same few places in the cache.
inline Strips transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = 0; i < rows; i += PADDING)
    for (int64_t j = 0; j < columns; j += PADDING)
      at::vec::transpose_mxn<float, PADDING, PADDING>(from + i * columns + j, columns, to + i * columns + j * PADDING,
                                                      PADDING);
  return {to, PADDING, PADDING * columns};
}
