// Attention with normalised queries and keys on a CPU, in float32: `normalised_attention` of operations.py in one pass
// over memory, forward and backward.
//
// Heads of 32 channels are too narrow for a library's matrix products, and tensors of a whole batch too large for its
// caches. So a sample is brought into the cache once, its queries and keys normalised on the way; there each head's
// products are made in tiles of registers, a few rows of scores at a time, and what leaves is the result alone. The
// backward pass keeps nothing but the inputs and computes the scores again.
#include "heads.h"
#include "small_products.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace {

constexpr int64_t BLOCK_ROWS = 48;  // queries whose scores are in the cache together
static_assert(BLOCK_ROWS % TILE_ROWS == 0);

// Softmax is computed with powers of two, e^x = 2^(x / ln 2), and queries are scaled by what that needs.
constexpr float LN_2 = 0.6931471806f;

float query_scale(int64_t head_dim) { return 1 / (LN_2 * std::sqrt(static_cast<float>(head_dim))); }

// 2^x for -126 <= x <= 0, to 2e-7 of it: 2^n 2^r with n = round(x) and |r| <= 1/2. 2^r is the polynomial of least
// relative error, 9e-8, and n is added to the exponent's bits.
Register power_of_two(const Register& x) {
  typedef int32_t Bits __attribute__((vector_size(LANES * sizeof(float)), may_alias));
  const float to_integer = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded, and stands in its lowest bits
  const Register shifted = x + to_integer, r = x - (shifted - to_integer);
  Register polynomial = r * 1.326472720e-3f + 9.671512640e-3f;
  polynomial = polynomial * r + 5.550733743e-2f;
  polynomial = polynomial * r + 2.402224209e-1f;
  polynomial = polynomial * r + 6.931469776e-1f;
  polynomial = polynomial * r + 1.f;
  return (Register)((Bits)polynomial + ((Bits)shifted << 23));
}

// What becomes of scores: 2^(score - at_most[row]), whose sums over the row's keys are gathered. `far` where that may
// be less than 2^-126; it is no less than 2^-100 then.
template <bool far>
struct Powers {
  float* powers;
  int64_t row, keys;
  const float* at_most;
  Register* sums;
  Register first(int64_t r, int64_t) const { return Register{} - at_most[r]; }
  template <int64_t registers>
  void last(int64_t r, int64_t column, const Register (&scores)[registers]) const {
#pragma GCC unroll 2
    for (int64_t j = 0; j < registers; ++j) {
      const Register power = power_of_two(far ? Largest()(Register{} - 100.f, scores[j]) : scores[j]);
      reinterpret_cast<Register*>(powers + r * row + column)[j] = power;
      const int64_t keys_left = keys - (column + j * LANES);
      sums[r] += keys_left >= LANES ? power : first_lanes(power, keys_left);
    }
  }
};

float length(const float* row, int64_t dim) {
  const auto* x = reinterpret_cast<const Register*>(row);
  return std::sqrt(across<Sum>(combined<Sum>(dim / LANES, [&](int64_t j) { return x[j] * x[j]; })));
}

// The keys of one head, ready for scores.
struct Keys {
  Strips transposed;
  int64_t count;
  float longest = 0;
  Keys(const Heads& keys, int64_t h, float* scratch)
      : transposed(transpose(keys.head(h), padded(keys.tokens), keys.row, scratch)), count(keys.tokens) {
    for (int64_t l = 0; l < count; ++l) longest = Largest()(length(keys.at(h, l), keys.row), longest);
  }
};

// Softmax of the scores of some queries of a head from i on, up to a factor for each row, its `inverse_sums`: powers of
// two [rows, keys], which mean nothing in the padding.
//
// What is taken off a row's scores need not be the largest of them. A query's length times that of the longest key is
// known beforehand, so that a score becomes a power without leaving its register; where it is too far off for that,
// the products are made twice.
void attention_powers(const Heads& queries, int64_t h, int64_t i, int64_t rows, const Keys& keys, float* powers,
                      int64_t stride, float* inverse_sums) {
  const float never_far = 45;  // powers from 2^-90 to 1, with room for gradients over their sum
  const int64_t columns = padded(keys.count);
  const Left q{queries.at(h, i), queries.row, 1};
  float at_most[BLOCK_ROWS];
  Register sums[BLOCK_ROWS] = {};
  bool far = false;
  for (int64_t r = 0; r < rows; ++r) {
    at_most[r] = length(queries.at(h, i + r), queries.row) * keys.longest;
    far |= !(at_most[r] <= never_far);  // also what is no number
  }
  const auto multiply_to = [&](const auto& result) {
    multiply(rows, columns, queries.sizes.head_dim, q, keys.transposed, result);
  };
  if (far) {
    multiply_to(Stored<false>{powers, stride});
    for (int64_t r = 0; r < rows; ++r)
      at_most[r] = *std::max_element(powers + r * stride, powers + r * stride + keys.count);
    multiply_to(Powers<true>{powers, stride, keys.count, at_most, sums});
  } else {
    multiply_to(Powers<false>{powers, stride, keys.count, at_most, sums});
  }
  for (int64_t r = 0; r < rows; ++r) inverse_sums[r] = 1 / across<Sum>(sums[r]);
}

// From the gradients in softmax those in the scores, in place: ln 2 * p * (gradients - sum(p * gradients)), where p is
// `powers` times the row's inverse sum.
void softmax_backward(const float* powers, float* gradients, int64_t stride, int64_t rows, int64_t columns,
                      const float* inverse_sums) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto* p = reinterpret_cast<const Register*>(powers + r * stride);
    auto* g = reinterpret_cast<Register*>(gradients + r * stride);
    const Register sums = combined<Sum>(columns / LANES, [&](int64_t j) { return p[j] * g[j]; });
    const float expected = across<Sum>(sums) * inverse_sums[r];
    const float factor = inverse_sums[r] * LN_2;
    for (int64_t j = 0; j < columns / LANES; ++j) g[j] = p[j] * factor * (g[j] - expected);
  }
}

void scale_row(const float* from, float factor, int64_t size, float* to) {
  for (int64_t j = 0; j < size; ++j) to[j] = from[j] * factor;
}

// Pieces of one allocation, for a thread that works on one head after the other.
struct Scratch {
  at::Tensor memory;
  float* next;
  explicit Scratch(int64_t size) : memory(at::empty({size}, at::kFloat)), next(memory.data_ptr<float>()) {}
  float* take(int64_t size) { return std::exchange(next, next + size); }
};

// Calls body(first, last) for all samples: side by side where there is one for each thread, otherwise one after the
// other, and what body does inside is shared among the threads.
template <typename Body>
void for_samples(int64_t samples, const Body& body) {
  if (samples >= at::get_num_threads())
    at::parallel_for(0, samples, 1, body);
  else
    body(0, samples);
}

void check(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, int64_t head_dim) {
  for (const at::Tensor* x : {&queries, &keys, &values})
    TORCH_CHECK(x->dim() == 3 && x->stride(2) == 1 && x->scalar_type() == at::kFloat, "tokens are float32 [n, t, h]");
  TORCH_CHECK(keys.sizes() == values.sizes() && keys.size(0) == queries.size(0) && keys.size(2) == queries.size(2),
              "queries of ", queries.sizes(), " do not fit keys of ", keys.sizes(), " and values of ", values.sizes());
  TORCH_CHECK(head_dim > 0 && queries.size(2) % head_dim == 0, "width ", queries.size(2), " is not whole heads of ",
              head_dim);
}

at::Tensor forward(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, int64_t head_dim,
                   double norm_eps) {
  check(queries, keys, values, head_dim);
  const int64_t samples = queries.size(0), t = queries.size(1), l = keys.size(1);
  const int64_t columns = padded(l), stride = columns + CACHE_LINE;
  const Sizes sizes{queries.size(2) / head_dim, head_dim};
  const int64_t dim = sizes.padded_dim();
  const float scale = query_scale(head_dim);
  at::Tensor attended = at::empty({samples, t, sizes.width()}, at::kFloat);
  for_samples(samples, [&](int64_t first, int64_t last) {
    const Heads q(t, sizes), k(l, sizes), v(l, sizes);
    Scratch deviations(t + l);
    float *of_queries = deviations.take(t), *of_keys = deviations.take(l);
    for (int64_t n = first; n < last; ++n) {
      split_normalised(rows_of(queries, n), scale, norm_eps, q, of_queries);
      split_normalised(rows_of(keys, n), 1, norm_eps, k, of_keys);
      split(rows_of(values, n), v);
      at::parallel_for(0, sizes.heads, 1, [&](int64_t begin, int64_t end) {
        Scratch scratch(dim * columns + BLOCK_ROWS * stride);
        float *transposed = scratch.take(dim * columns), *scores = scratch.take(BLOCK_ROWS * stride);
        float inverse_sums[BLOCK_ROWS];
        for (int64_t h = begin; h < end; ++h) {
          const Keys of_head(k, h, transposed);
          for (int64_t i = 0; i < t; i += BLOCK_ROWS) {
            const int64_t rows = std::min(BLOCK_ROWS, t - i);
            attention_powers(q, h, i, rows, of_head, scores, stride, inverse_sums);
            // What these queries attended to takes their place. Straight into the result it would be a few numbers
            // a row, and stores that wait for those lines hold up the scores of the next queries.
            multiply(rows, dim, l, Left{scores, stride, 1}, row_by_row(v.head(h), dim), Stored<false>{q.at(h, i), dim});
            for (int64_t r = 0; r < rows; ++r) scale_row(q.at(h, i + r), inverse_sums[r], dim, q.at(h, i + r));
          }
        }
      });
      merge(q, rows_of(attended, n));
    }
  });
  return attended;
}

// Writes the gradients of queries, keys and values, tensors of the same sizes as these.
void backward(const at::Tensor& gradient, const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
              at::Tensor& of_queries, at::Tensor& of_keys, at::Tensor& of_values, int64_t head_dim, double norm_eps) {
  check(queries, keys, values, head_dim);
  check(of_queries, of_keys, of_values, head_dim);
  TORCH_CHECK(gradient.sizes() == queries.sizes() && of_queries.sizes() == queries.sizes() && gradient.stride(2) == 1 &&
                  of_keys.sizes() == keys.sizes(),
              "gradients are of the sizes of what they belong to");
  const int64_t samples = queries.size(0), t = queries.size(1), l = keys.size(1);
  const int64_t columns = padded(l), stride = columns + CACHE_LINE;
  const Sizes sizes{queries.size(2) / head_dim, head_dim};
  const int64_t dim = sizes.padded_dim();
  const float scale = query_scale(head_dim);
  for_samples(samples, [&](int64_t first, int64_t last) {
    const Heads q(t, sizes), k(l, sizes), v(l, sizes), out(t, sizes);  // the inputs, and the gradient of the result
    const Heads dq(t, sizes), dk(l, sizes), dv(l, sizes);
    Scratch deviations(t + l);
    float *q_deviations = deviations.take(t), *k_deviations = deviations.take(l);
    for (int64_t n = first; n < last; ++n) {
      split_normalised(rows_of(queries, n), scale, norm_eps, q, q_deviations);
      split_normalised(rows_of(keys, n), 1, norm_eps, k, k_deviations);
      split(rows_of(values, n), v);
      split(rows_of(gradient, n), out);
      at::parallel_for(0, sizes.heads, 1, [&](int64_t begin, int64_t end) {
        Scratch scratch(2 * dim * columns + BLOCK_ROWS * (2 * stride + dim));
        float *transposed_k = scratch.take(dim * columns), *transposed_v = scratch.take(dim * columns);
        float *p = scratch.take(BLOCK_ROWS * stride), *ds = scratch.take(BLOCK_ROWS * stride);
        float *scaled = scratch.take(BLOCK_ROWS * dim), inverse_sums[BLOCK_ROWS];
        for (int64_t h = begin; h < end; ++h) {
          const Keys of_head(k, h, transposed_k);
          const Strips values_transposed = transpose(v.head(h), columns, dim, transposed_v);
          std::fill(dk.at(h, 0), dk.at(h, l), 0.f);
          std::fill(dv.at(h, 0), dv.at(h, l), 0.f);
          for (int64_t i = 0; i < t; i += BLOCK_ROWS) {
            const int64_t rows = std::min(BLOCK_ROWS, t - i);
            // p = 2^(q k^T), softmax up to a factor for each row;  ds = the gradient in the scores, from out v^T in p
            attention_powers(q, h, i, rows, of_head, p, stride, inverse_sums);
            multiply(rows, columns, head_dim, Left{out.at(h, i), dim, 1}, values_transposed, Stored<false>{ds, stride});
            softmax_backward(p, ds, stride, rows, columns, inverse_sums);
            // dv += p^T out;  dk += ds^T q;  dq = ds k
            for (int64_t r = 0; r < rows; ++r) scale_row(out.at(h, i + r), inverse_sums[r], dim, scaled + r * dim);
            multiply(l, dim, rows, Left{p, 1, stride}, row_by_row(scaled, dim), Stored<true>{dv.head(h), dim});
            multiply(l, dim, rows, Left{ds, 1, stride}, row_by_row(q.at(h, i), dim), Stored<true>{dk.head(h), dim});
            multiply(rows, dim, l, Left{ds, stride, 1}, row_by_row(k.head(h), dim), Stored<false>{dq.at(h, i), dim});
          }
        }
      });
      merge_normalised(dq, q, scale, q_deviations, rows_of(of_queries, n));
      merge_normalised(dk, k, 1, k_deviations, rows_of(of_keys, n));
      merge(dv, rows_of(of_values, n));
    }
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(microdit, library) {
  library.def("attention(Tensor queries, Tensor keys, Tensor values, int head_dim, float norm_eps) -> Tensor");
  library.def(
      "attention_backward(Tensor gradient, Tensor queries, Tensor keys, Tensor values, Tensor(a!) of_queries, "
      "Tensor(b!) of_keys, Tensor(c!) of_values, int head_dim, float norm_eps) -> ()");
  library.impl("attention", c10::DispatchKey::CPU, &forward);
  library.impl("attention_backward", c10::DispatchKey::CPU, &backward);
}
