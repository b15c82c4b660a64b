// The point-wise parts of a block on a CPU, in float32, each in one pass over memory, forward and backward: the
// formulas are in operations.py. A sample's row is read into the cache, and all that it is needed for is done there.
#include "row_moments.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

namespace {

using Vector = at::vec::Vectorized<float>;
using at::Tensor;

// Raises unless all are contiguous float32 tensors of the size of the first: x [n, t, d].
void check_tokens(at::ArrayRef<Tensor> tensors) {
  for (const Tensor& x : tensors)
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kFloat && x.sizes() == tensors[0].sizes(),
                "tokens of ", x.sizes(), " where contiguous float32 ones of ", tensors[0].sizes(), " belong");
}

// The same for what belongs to a whole sample of x: [n, d].
void check_vectors(const Tensor& x, at::ArrayRef<Tensor> tensors) {
  TORCH_CHECK(x.dim() == 3, "tokens are [n, t, d]");
  for (const Tensor& y : tensors)
    TORCH_CHECK(y.is_contiguous() && y.scalar_type() == at::kFloat && y.dim() == 2 && y.size(0) == x.size(0) &&
                    y.size(1) == x.size(2),
                "one vector a sample of ", y.sizes(), " for tokens of ", x.sizes());
}

struct Sizes {
  int64_t samples, tokens, dim;
  explicit Sizes(const Tensor& x) : samples(x.size(0)), tokens(x.size(1)), dim(x.size(2)) {}
};

// Calls body(sample, row) for the rows of all samples, side by side.
template <typename Body>
void for_rows(const Sizes& sizes, const Body& body) {
  at::parallel_for(0, sizes.samples * sizes.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row / sizes.tokens, row);
  });
}

// The same, but all rows of a sample by one thread, so that it can sum over them.
template <typename Body>
void for_samples(const Sizes& sizes, const Body& body) {
  at::parallel_for(0, sizes.samples, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * sizes.tokens; row < end * sizes.tokens; ++row) body(row / sizes.tokens, row);
  });
}

// ---- (x - mean) / deviation * factor + shift ----

Tensor modulated_norm(const Tensor& x, const Tensor& factor, const Tensor& shift, double norm_eps) {
  check_tokens({x});
  check_vectors(x, {factor, shift});
  const Sizes sizes(x);
  Tensor modulated = at::empty_like(x);
  const float *from = x.const_data_ptr<float>(), *factors = factor.const_data_ptr<float>();
  const float* shifts = shift.const_data_ptr<float>();
  float* to = modulated.data_ptr<float>();
  for_rows(sizes, [&](int64_t n, int64_t i) {
    const float *row = from + i * sizes.dim, *f = factors + n * sizes.dim, *s = shifts + n * sizes.dim;
    float* out = to + i * sizes.dim;
    const Moments of_row = moments(row, sizes.dim, norm_eps);
    const float mean = of_row.mean, inverse_deviation = of_row.inverse_deviation;
    for (int64_t j = 0; j < sizes.dim; ++j) out[j] = (row[j] - mean) * inverse_deviation * f[j] + s[j];
  });
  return modulated;
}

// The gradients of x, factor and shift.
std::tuple<Tensor, Tensor, Tensor> modulated_norm_backward(const Tensor& gradient, const Tensor& x,
                                                           const Tensor& factor, double norm_eps) {
  check_tokens({x, gradient});
  check_vectors(x, {factor});
  const Sizes sizes(x);
  Tensor of_x = at::empty_like(x), of_factor = at::zeros_like(factor), of_shift = at::zeros_like(factor);
  const float *gradients = gradient.const_data_ptr<float>(), *from = x.const_data_ptr<float>();
  const float* factors = factor.const_data_ptr<float>();
  float *to = of_x.data_ptr<float>(), *to_factor = of_factor.data_ptr<float>(), *to_shift = of_shift.data_ptr<float>();
  for_samples(sizes, [&](int64_t n, int64_t i) {
    const float *g = gradients + i * sizes.dim, *row = from + i * sizes.dim, *f = factors + n * sizes.dim;
    float *out = to + i * sizes.dim, *df = to_factor + n * sizes.dim, *ds = to_shift + n * sizes.dim;
    const Moments of_row = moments(row, sizes.dim, norm_eps);
    const float mean = of_row.mean, inverse_deviation = of_row.inverse_deviation;
    float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t j = 0; j < sizes.dim; ++j) {
      const float normalised = (row[j] - mean) * inverse_deviation, of_normalised = g[j] * f[j];
      sum += of_normalised;
      along += of_normalised * normalised;
      df[j] += g[j] * normalised;
      ds[j] += g[j];
    }
    const float constant = sum / sizes.dim, slope = along / sizes.dim * inverse_deviation;
    for (int64_t j = 0; j < sizes.dim; ++j)
      out[j] = inverse_deviation * (g[j] * f[j] - constant - (row[j] - mean) * slope);
  });
  return {of_x, of_factor, of_shift};
}

// ---- x + gate * y ----

Tensor add_gated(const Tensor& x, const Tensor& gate, const Tensor& y) {
  check_tokens({x, y});
  check_vectors(x, {gate});
  const Sizes sizes(x);
  Tensor sum = at::empty_like(x);
  const float *xs = x.const_data_ptr<float>(), *gates = gate.const_data_ptr<float>(), *ys = y.const_data_ptr<float>();
  float* to = sum.data_ptr<float>();
  for_rows(sizes, [&](int64_t n, int64_t i) {
    const float *a = xs + i * sizes.dim, *b = ys + i * sizes.dim, *f = gates + n * sizes.dim;
    float* out = to + i * sizes.dim;
    for (int64_t j = 0; j < sizes.dim; ++j) out[j] = a[j] + f[j] * b[j];
  });
  return sum;
}

// The gradients of gate and y; that of x is the sum's.
std::tuple<Tensor, Tensor> add_gated_backward(const Tensor& gradient, const Tensor& gate, const Tensor& y) {
  check_tokens({y, gradient});
  check_vectors(y, {gate});
  const Sizes sizes(y);
  Tensor of_gate = at::zeros_like(gate), of_y = at::empty_like(y);
  const float *gradients = gradient.const_data_ptr<float>(), *ys = y.const_data_ptr<float>();
  const float* gates = gate.const_data_ptr<float>();
  float *to_gate = of_gate.data_ptr<float>(), *to = of_y.data_ptr<float>();
  for_samples(sizes, [&](int64_t n, int64_t i) {
    const float *g = gradients + i * sizes.dim, *b = ys + i * sizes.dim, *f = gates + n * sizes.dim;
    float *out = to + i * sizes.dim, *df = to_gate + n * sizes.dim;
    for (int64_t j = 0; j < sizes.dim; ++j) {
      df[j] += g[j] * b[j];
      out[j] = g[j] * f[j];
    }
  });
  return {of_gate, of_y};
}

// ---- silu(x) * y ----

Vector sigmoid(const Vector& x) { return Vector(1.f) / (Vector(1.f) + x.neg().exp_u20()); }

// Calls body(first, count) for pieces of one vector each; the last of all may be shorter.
template <typename Body>
void for_vectors(int64_t size, const Body& body) {
  const int64_t vectors = (size + Vector::size() - 1) / Vector::size();
  at::parallel_for(0, vectors, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * Vector::size(); i < end * Vector::size(); i += Vector::size())
      body(i, std::min<int64_t>(Vector::size(), size - i));
  });
}

Tensor silu_product(const Tensor& x, const Tensor& y) {
  check_tokens({x, y});
  Tensor product = at::empty_like(x);
  const float *xs = x.const_data_ptr<float>(), *ys = y.const_data_ptr<float>();
  float* to = product.data_ptr<float>();
  for_vectors(x.numel(), [&](int64_t i, int64_t count) {
    const Vector a = Vector::loadu(xs + i, count), b = Vector::loadu(ys + i, count);
    (a * sigmoid(a) * b).store(to + i, count);
  });
  return product;
}

std::tuple<Tensor, Tensor> silu_product_backward(const Tensor& gradient, const Tensor& x, const Tensor& y) {
  check_tokens({x, y, gradient});
  Tensor of_x = at::empty_like(x), of_y = at::empty_like(y);
  const float *gradients = gradient.const_data_ptr<float>(), *xs = x.const_data_ptr<float>();
  const float* ys = y.const_data_ptr<float>();
  float *to_x = of_x.data_ptr<float>(), *to_y = of_y.data_ptr<float>();
  for_vectors(x.numel(), [&](int64_t i, int64_t count) {
    const Vector g = Vector::loadu(gradients + i, count), a = Vector::loadu(xs + i, count);
    const Vector b = Vector::loadu(ys + i, count), s = sigmoid(a), silu = a * s;
    (g * b * (s + silu * (Vector(1.f) - s))).store(to_x + i, count);
    (g * silu).store(to_y + i, count);
  });
  return {of_x, of_y};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(microdit, library) {
  library.def("modulated_norm(Tensor x, Tensor factor, Tensor shift, float norm_eps) -> Tensor");
  library.def(
      "modulated_norm_backward(Tensor gradient, Tensor x, Tensor factor, float norm_eps) -> (Tensor, Tensor, Tensor)");
  library.def("add_gated(Tensor x, Tensor gate, Tensor y) -> Tensor");
  library.def("add_gated_backward(Tensor gradient, Tensor gate, Tensor y) -> (Tensor, Tensor)");
  library.def("silu_product(Tensor x, Tensor y) -> Tensor");
  library.def("silu_product_backward(Tensor gradient, Tensor x, Tensor y) -> (Tensor, Tensor)");
  library.impl("modulated_norm", c10::DispatchKey::CPU, &modulated_norm);
  library.impl("modulated_norm_backward", c10::DispatchKey::CPU, &modulated_norm_backward);
  library.impl("add_gated", c10::DispatchKey::CPU, &add_gated);
  library.impl("add_gated_backward", c10::DispatchKey::CPU, &add_gated_backward);
  library.impl("silu_product", c10::DispatchKey::CPU, &silu_product);
  library.impl("silu_product_backward", c10::DispatchKey::CPU, &silu_product_backward);
}
