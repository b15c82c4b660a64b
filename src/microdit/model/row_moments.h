// Mean and deviation of a row: what every layer norm among the compiled operations begins with.
#pragma once
#include <cmath>
#include <cstdint>

struct Moments {
  float mean, inverse_deviation;
};

inline Moments moments(const float* row, int64_t dim, float norm_eps) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < dim; ++j) sum += row[j];
  const float mean = sum / dim;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < dim; ++j) squares += (row[j] - mean) * (row[j] - mean);
  return {mean, 1 / std::sqrt(squares / dim + norm_eps)};
}
