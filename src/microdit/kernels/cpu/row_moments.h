// Mean and deviation of a row: what every layer norm among the compiled operations begins with.
#pragma once
#include "registers.h"

#include <cmath>

struct Moments {
  float mean, inverse_deviation;
};

inline Moments moments(const float* row, int64_t dim, float norm_eps) {
  const auto sum_over_row = [&](const auto& term) {
    float sum = across<Sum>(combined<Sum>(dim / LANES, [&](int64_t j) { return term(load(row + j * LANES)); }));
    for (int64_t j = dim / LANES * LANES; j < dim; ++j) sum += term(row[j]);
    return sum;
  };
  const float mean = sum_over_row([](const auto& x) { return x; }) / dim;
  const float variance = sum_over_row([&](const auto& x) { return (x - mean) * (x - mean); }) / dim;
  return {mean, 1 / std::sqrt(variance + norm_eps)};
}
