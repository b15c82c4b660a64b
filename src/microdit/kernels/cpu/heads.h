// The tokens of one sample of a tensor, and the same split into heads in the cache, normalised on the way.
#pragma once
#include "row_moments.h"
#include "small_products.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

// In floats. Added between rows, because those whose distance is a power of two compete for the same places in a cache.
constexpr int64_t CACHE_LINE = 64 / sizeof(float);

// The rows of one sample in a tensor [n, t, h] whose last axis is contiguous.
struct Rows {
  float* data;
  int64_t stride;
  float* operator[](int64_t t) const { return data + t * stride; }
};

inline Rows rows_of(const at::Tensor& tokens, int64_t sample) {
  return {tokens.data_ptr<float>() + sample * tokens.stride(0), tokens.stride(1)};
}

struct Sizes {
  int64_t heads, head_dim;
  int64_t width() const { return heads * head_dim; }
  int64_t padded_dim() const { return padded(head_dim); }
};

// Tokens split into heads, [heads, padded(t), padded_dim], zeros in the padding.
struct Heads {
  int64_t tokens;
  Sizes sizes;
  int64_t row, stride;
  at::Tensor memory;
  float* data;
  Heads(int64_t tokens, Sizes sizes)
      : tokens(tokens),
        sizes(sizes),
        row(sizes.padded_dim()),
        stride(padded(tokens) * row + CACHE_LINE),
        memory(at::empty({sizes.heads * stride}, at::kFloat)),
        data(memory.data_ptr<float>()) {}
  float* head(int64_t h) const { return data + h * stride; }
  float* at(int64_t h, int64_t t) const { return head(h) + t * row; }
};

inline void split_row(const float* row, float shift, float scale, int64_t t, const Heads& heads) {
  const Sizes s = heads.sizes;
  for (int64_t h = 0; h < s.heads; ++h) {
    const float* from = row + h * s.head_dim;
    float* to = heads.at(h, t);
    for (int64_t j = 0; j < s.head_dim; ++j) to[j] = (from[j] - shift) * scale;
    std::fill(to + s.head_dim, to + s.padded_dim(), 0.f);
  }
}

inline void split_padding(const Heads& heads) {
  const int64_t first = heads.tokens, last = padded(heads.tokens);
  for (int64_t h = 0; h < heads.sizes.heads; ++h) std::fill(heads.at(h, first), heads.at(h, last), 0.f);
}

inline void split(const Rows& rows, const Heads& heads) {
  at::parallel_for(0, heads.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) split_row(rows[t], 0, 1, t, heads);
  });
  split_padding(heads);
}

// Split (x - mean) / deviation * scale. `inverse_deviations` [t] are what the backward pass needs of it.
inline void split_normalised(const Rows& rows, float scale, double norm_eps, const Heads& heads,
                             float* inverse_deviations) {
  const int64_t width = heads.sizes.width();
  at::parallel_for(0, heads.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = rows[t];
      const Moments of_row = moments(row, width, static_cast<float>(norm_eps));
      inverse_deviations[t] = of_row.inverse_deviation;
      split_row(row, of_row.mean, scale * of_row.inverse_deviation, t, heads);
    }
  });
  split_padding(heads);
}

inline void merge(const Heads& heads, const Rows& rows) {
  const Sizes s = heads.sizes;
  at::parallel_for(0, heads.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < s.heads; ++h)
        std::copy(heads.at(h, t), heads.at(h, t) + s.head_dim, rows[t] + h * s.head_dim);
  });
}

// Backward of split_normalised. With y = scale (x - mean) / deviation and g the gradient in y, that in x is
// scale / deviation * (g - mean(g) - y mean(g y) / scale^2), means over the width.
inline void merge_normalised(const Heads& gradients, const Heads& normalised, float scale,
                             const float* inverse_deviations, const Rows& rows) {
  const Sizes s = gradients.sizes;
  at::parallel_for(0, gradients.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      Register sums{}, products{};
      for (int64_t h = 0; h < s.heads; ++h) {
        const auto* g = reinterpret_cast<const Register*>(gradients.at(h, t));
        const auto* y = reinterpret_cast<const Register*>(normalised.at(h, t));
        sums += combined<Sum>(s.padded_dim() / LANES, [&](int64_t j) { return g[j]; });
        products += combined<Sum>(s.padded_dim() / LANES, [&](int64_t j) { return g[j] * y[j]; });
      }
      const float sum = across<Sum>(sums), along = across<Sum>(products);
      const float mean = sum / s.width(), slope = along / s.width() / (scale * scale);
      const float factor = scale * inverse_deviations[t];
      for (int64_t h = 0; h < s.heads; ++h) {
        const float *g = gradients.at(h, t), *y = normalised.at(h, t);
        float* to = rows[t] + h * s.head_dim;
        for (int64_t j = 0; j < s.head_dim; ++j) to[j] = factor * (g[j] - mean - y[j] * slope);
      }
    }
  });
}
