// Vectors of float32 as wide as the processor's, and what is computed on them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// A tile of MR rows and three vectors of outputs keeps its sums in registers: 24 of 32, or 12 of 16.
#if defined(__AVX512F__)
constexpr int VW = 16, MR = 8;
#elif defined(__AVX__)
constexpr int VW = 8, MR = 4;
#elif defined(__aarch64__)
constexpr int VW = 4, MR = 8;
#else
constexpr int VW = 4, MR = 4;
#endif
constexpr int NV = 3, NR = NV * VW;
// Rows that go through all panels together: their inputs stay in the second-level cache, their sums in the first.
constexpr int64_t ROWS_AT_ONCE = 64;
// Inputs of a panel that go through them together: in the first-level cache beside the sums.
constexpr int64_t INPUTS_AT_ONCE = 96;

typedef float vec __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VW * 4), aligned(4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
inline vec splat(float s) { return s - vec{}; }

// Neighbours first, as `sums` does it: the same numbers have the same sum by both.
inline float sum(vec v) {
  for (int step = 1; step < VW; step *= 2) {
    ivec order;
    for (int i = 0; i < VW; ++i) order[i] = i ^ step;
    v += __builtin_shuffle(v, order);
  }
  return v[0];
}

// Lane i of the result is the sum of v[i]; `v` is used up. A tree of pairs: a sum costs three instructions.
inline vec sums(vec (&v)[VW]) {
  ivec even, odd;
  for (int i = 0; i < VW; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
#pragma GCC unroll 8
  for (int count = VW; count > 1; count /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i)
      v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even) + __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
  return v[0];
}

inline float largest(vec v) {
  float m = v[0];
  for (int i = 1; i < VW; ++i) m = std::max(m, v[i]);
  return m;
}

// Of `count` values, at least one.
inline float highest_of(const float* values, int64_t count) {
  vec top = splat(values[0]);
  int64_t t = 0;
  for (; t + VW <= count; t += VW) {
    const vec v = load(values + t);
    top = v > top ? v : top;
  }
  float highest = largest(top);
  for (; t < count; ++t) highest = std::max(highest, values[t]);
  return highest;
}

inline float dot(const float* a, const float* b, int64_t count) {
  vec totals = {};
  int64_t t = 0;
  for (; t + VW <= count; t += VW) totals += load(a + t) * load(b + t);
  float total = sum(totals);
  for (; t < count; ++t) total += a[t] * b[t];
  return total;
}

// exp by 2^n e^r, |r| <= ln 2 / 2, Taylor of degree 7: within 2 ulp; 0 below -87, as float32 nearly is.
inline vec exp_(vec x) {
  const vec low = splat(-87.0f), high = splat(88.0f);
  const auto is_low = x < low;
  x = is_low ? low : x;
  x = x > high ? high : x;
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the lowest bits
  const vec shifted = x * 1.44269504f + magic;
  const vec n = shifted - magic;
  const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const ivec power = ((ivec)shifted - 0x4B400000 + 127) << 23;
  return is_low ? vec{} : p * (vec)power;
}

// values = exp(values - highest); their sum.
inline float exponentials(float* values, int64_t count, float highest) {
  vec totals = {};
  int64_t t = 0;
  for (; t + VW <= count; t += VW) {
    const vec e = exp_(load(values + t) - highest);
    store(values + t, e);
    totals += e;
  }
  if (t < count) {
    float rest[VW];
    std::fill(rest, rest + VW, -INFINITY);
    std::memcpy(rest, values + t, (count - t) * sizeof(float));
    const vec e = exp_(load(rest) - highest);
    std::memcpy(values + t, &e, (count - t) * sizeof(float));
    totals += e;
  }
  return sum(totals);
}

}  // namespace
