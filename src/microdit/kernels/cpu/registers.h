// The processor's vector registers, and how the numbers of a row become one.
#pragma once
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>

constexpr int64_t LANES = at::vec::Vectorized<float>::size();

// A compiler keeps an array of these in registers; of at::vec's class it does not. What is read or written through a
// pointer to them begins at a multiple of their size.
template <int64_t lanes>
struct Lanes {
  typedef float type __attribute__((vector_size(lanes * sizeof(float)), may_alias));
};
using Register = Lanes<LANES>::type;

inline Register load(const float* from) {  // from any address
  Register values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

// The first `count` lanes, and zeros.
inline Register first_lanes(const Register& values, int64_t count) {
  static constexpr auto ones_then_zeros = [] {
    std::array<float, 2 * LANES> made{};
    for (int64_t j = 0; j < LANES; ++j) made[j] = 1;
    return made;
  }();
  return values * load(ones_then_zeros.data() + LANES - std::clamp<int64_t>(count, 0, LANES));
}

struct Sum {
  static constexpr float OF_NOTHING = 0;
  template <typename T>
  T operator()(const T& x, const T& y) const { return x + y; }
};

struct Largest {
  static constexpr float OF_NOTHING = -std::numeric_limits<float>::infinity();
  template <typename T>
  T operator()(const T& x, const T& y) const { return x > y ? x : y; }
};

// term(0), ..., term(count - 1) combined lane by lane. Four at once, because each waits for the one it is added to.
template <typename Combine, typename Term>
C10_ALWAYS_INLINE Register combined(int64_t count, const Term& term) {
  const Combine combine;
  const Register start = Register{} + Combine::OF_NOTHING;
  Register partial[4] = {start, start, start, start};
  int64_t j = 0;
  for (; j + 4 <= count; j += 4)
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) partial[i] = combine(partial[i], term(j + i));
  for (; j < count; ++j) partial[0] = combine(partial[0], term(j));
  return combine(combine(partial[0], partial[1]), combine(partial[2], partial[3]));
}

// The lanes of one register combined, half with half.
template <typename Combine, int64_t lanes = LANES>
C10_ALWAYS_INLINE float across(typename Lanes<lanes>::type values) {
  if constexpr (lanes == 2) {
    return Combine()(values[0], values[1]);
  } else {
    typename Lanes<lanes / 2>::type low, high;
    std::memcpy(&low, &values, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&values) + sizeof(low), sizeof(high));
    return across<Combine, lanes / 2>(Combine()(low, high));
  }
}
