// What is computed row by row: norms, gates and their gradients.
#pragma once

#include "threads.h"
#include "vectors.h"

namespace {

float inverse_rms(const float* x, int64_t width, float eps) {
  return 1.0f / std::sqrt(dot(x, x, width) / width + eps);
}

void norm_row(const float* x, const float* weight, int64_t width, float eps, float* y) {
  const float r = inverse_rms(x, width, eps);
  for (int64_t i = 0; i < width; ++i) y[i] = x[i] * r * weight[i];
}

void norm_part(const float* x, const float* weight, int64_t rows, int64_t width, float eps, float* y, int thread,
               int threads) {
  const Part mine = part(rows, thread, threads);
  for (int64_t n = mine.begin; n < mine.end; ++n) norm_row(x + n * width, weight, width, eps, y + n * width);
}

// Turns the two halves of a head by the angles whose cos and sin are given; `to` may be `from`.
void rotate(const float* from, const float* cos, const float* sin, int64_t dim, float* to) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = from[i], b = from[half + i];
    to[i] = a * cos[i] - b * sin[i];
    to[half + i] = b * cos[i] + a * sin[i];
  }
}

// y = silu(gate) * up, where a row holds both one after the other.
void gated_row(const float* gate_up, int64_t width, float* y) {
  const float *gate = gate_up, *up = gate_up + width;
  int64_t i = 0;
  for (; i + VW <= width; i += VW) {
    const vec g = load(gate + i);
    store(y + i, g / (1.0f + exp_(-g)) * load(up + i));
  }
  for (; i < width; ++i) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

}  // namespace

extern "C" {

void chatgrpo_norm(const float* x, const float* weight, int64_t rows, int64_t width, float eps, float* y,
                   int32_t threads) {
#pragma omp parallel num_threads(threads)
  norm_part(x, weight, rows, width, eps, y, omp_get_thread_num(), omp_get_num_threads());
}

// Some rows of each layer, one after the other; layers are so many floats apart, rows `width`.
void chatgrpo_take_rows(const float* from, int64_t from_layer, int64_t layers, const int64_t* rows, int64_t count,
                        int64_t width, float* to, int64_t to_layer, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
  for (int64_t l = 0; l < layers; ++l)
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(to + l * to_layer + i * width, from + l * from_layer + rows[i] * width, width * sizeof(float));
}

// In place: the first `heads` heads of T rows, `ld` floats apart; cos and sin T x D/2.
void chatgrpo_rotate(float* x, int64_t ld, int64_t rows, int64_t heads, int64_t dim, const float* cos, const float* sin,
                     int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      float* head = x + t * ld + h * dim;
      rotate(head, cos + t * (dim / 2), sin + t * (dim / 2), dim, head);
    }
}

// act = silu(gate) * up: T x F from T x 2F.
void chatgrpo_gated(const float* gate_up, int64_t rows, int64_t width, float* act, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < rows; ++t) gated_row(gate_up + t * 2 * width, width, act + t * width);
}

// Gradients by gate and up, T x 2F, from that by act, T x F:
// d_up = d silu(g), d_gate = d up silu'(g), silu'(g) = s + silu(g) (1 - s), s = sigmoid(g).
void chatgrpo_gated_backward(const float* gate_up, const float* d_act, int64_t rows, int64_t width, float* d_gate_up,
                             int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < rows; ++t) {
    const float *gate = gate_up + t * 2 * width, *up = gate + width, *d = d_act + t * width;
    float *d_gate = d_gate_up + t * 2 * width, *d_up = d_gate + width;
    int64_t i = 0;
    for (; i + VW <= width; i += VW) {
      const vec g = load(gate + i), s = 1.0f / (1.0f + exp_(-g)), silu = g * s, by = load(d + i);
      store(d_up + i, by * silu);
      store(d_gate + i, by * load(up + i) * (s + silu * (1.0f - s)));
    }
    for (; i < width; ++i) {
      const float g = gate[i], s = 1.0f / (1.0f + std::exp(-g)), silu = g * s;
      d_up[i] = d[i] * silu;
      d_gate[i] = d[i] * up[i] * (s + silu * (1.0f - s));
    }
  }
}

// Of y = w n, n = x r, r = 1 / sqrt(mean(x^2) + eps): dx = r (dy w - n mean(dy w n)) + add. `add` may be null or dx.
void chatgrpo_norm_backward(const float* x, const float* weight, const float* dy, const float* add, int64_t rows,
                            int64_t width, float eps, float* dx, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < rows; ++t) {
    const float *xt = x + t * width, *dt = dy + t * width;
    const float r = inverse_rms(xt, width, eps);
    vec dots = {};
    int64_t i = 0;
    for (; i + VW <= width; i += VW) dots += load(dt + i) * load(weight + i) * load(xt + i);
    float dot = sum(dots);
    for (; i < width; ++i) dot += dt[i] * weight[i] * xt[i];
    const float mean = dot * r / width;  // of dy w n
    for (i = 0; i < width; ++i)
      dx[t * width + i] = r * (dt[i] * weight[i] - xt[i] * r * mean) + (add == nullptr ? 0.0f : add[t * width + i]);
  }
}

}  // extern "C"
