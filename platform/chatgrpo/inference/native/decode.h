// A decode step of a whole Llama-shaped model: one new token for each row.
#pragma once

#include "products.h"
#include "rows.h"

extern "C" {

struct Layer {
  const float* input_norm;
  Linear qkv;
  Linear out;
  const float* post_norm;
  Linear gate_up;
  Linear down;
  const float* query_norm;  // null: heads are not normed
  const float* key_norm;
};

// Keys and values that some rows begin with, K x length x D for each layer; `head_stride` floats from head to head.
struct Prefix {
  const float* const* keys;
  const float* const* values;
  int64_t length;
};

struct Step {
  int64_t num_layers, num_rows, hidden, intermediate, heads, kv_heads, head_dim;
  float eps, scale;
  const Layer* layers;
  const float* final_norm;
  const float* cos;  // N x D/2
  const float* sin;
  float* keys;  // layers x rows x K x length x D
  float* values;
  int64_t layer_stride, row_stride, head_stride;
  const int64_t* lengths;         // N: tokens that the row holds itself
  const Prefix* const* prefixes;  // N, null where there is none
  // Where each layer's activations go: row n of layer l at l * stride + n * width. A stride of 0 uses the memory anew.
  float* x;  // (layers + 1) x N x E; the first holds the embeddings
  float* qkv;
  float* middle;
  float* gate_up;
  int64_t x_stride, qkv_stride, middle_stride, gate_up_stride;
  float* hidden_out;  // N x E, after the last norm
  int32_t threads;
};

}  // extern "C"

namespace {

void place_head(const float* projected, const float* norm, const Step& s, int64_t row, float* to) {
  const int64_t dim = s.head_dim, half = dim / 2;
  std::vector<float> normed;
  if (norm != nullptr) {
    normed.resize(dim);
    norm_row(projected, norm, dim, s.eps, normed.data());
    projected = normed.data();
  }
  rotate(projected, s.cos + row * half, s.sin + row * half, dim, to);
}

// scores[g][t] = q_g . k_t for the `group` queries of a key/value head; rows of scores are `ld` apart. `next_row`: floats
// to what is read after this, brought near meanwhile.
void scores_of(const float* queries, int64_t group, const float* keys, int64_t length, int64_t dim, int64_t next_row,
               float* scores, int64_t ld) {
  if (length < VW || dim % VW != 0) {
    for (int64_t g = 0; g < group; ++g)
      for (int64_t t = 0; t < length; ++t) scores[g * ld + t] = dot(queries + g * dim, keys + t * dim, dim);
    return;
  }
  for (int64_t block = 0; block < length; block += VW) {
    const int64_t t = std::min(block, length - VW);  // the last block may tell some scores again
    const float* k = keys + t * dim;
    for (int64_t i = 0; i < VW * dim; i += 16) __builtin_prefetch(k + next_row + i, 0, 2);
    for (int64_t g = 0; g < group; ++g) {
      const float* q = queries + g * dim;
      vec dots[VW] = {};
      for (int64_t i = 0; i < dim; i += VW) {
        const vec part = load(q + i);
#pragma GCC unroll 16
        for (int j = 0; j < VW; ++j) dots[j] += part * load(k + j * dim + i);
      }
      store(scores + g * ld + t, sums(dots));
    }
  }
}

// out[g] += sum_t weights[g][t] v_t for G queries.
template <int G>
void add_values_of(const float* weights, int64_t ld, const float* values, int64_t length, int64_t dim, int64_t next_row,
                   float* out) {
  int64_t i = 0;
  for (; i + 4 * VW <= dim; i += 4 * VW) {
    vec sums[G][4];
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < 4; ++v) sums[g][v] = load(out + g * dim + i + v * VW);
    for (int64_t t = 0; t < length; ++t) {
      const float* from = values + t * dim + i;
      for (int v = 0; v < 4 * VW; v += 16) __builtin_prefetch(from + next_row + v, 0, 2);
      const vec v0 = load(from), v1 = load(from + VW), v2 = load(from + 2 * VW), v3 = load(from + 3 * VW);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const float w = weights[g * ld + t];
        sums[g][0] += w * v0;
        sums[g][1] += w * v1;
        sums[g][2] += w * v2;
        sums[g][3] += w * v3;
      }
    }
    for (int g = 0; g < G; ++g)
      for (int v = 0; v < 4; ++v) store(out + g * dim + i + v * VW, sums[g][v]);
  }
  for (int g = 0; g < G; ++g)
    for (int64_t j = i; j < dim; ++j)
      for (int64_t t = 0; t < length; ++t) out[g * dim + j] += weights[g * ld + t] * values[t * dim + j];
}

void add_values(const float* weights, int64_t ld, int64_t group, const float* values, int64_t length, int64_t dim,
                int64_t next_row, float* out) {
  int64_t g = 0;
  for (; g + 3 <= group; g += 3)
    add_values_of<3>(weights + g * ld, ld, values, length, dim, next_row, out + g * dim);
  for (; g < group; ++g) add_values_of<1>(weights + g * ld, ld, values, length, dim, next_row, out + g * dim);
}

void softmax(float* scores, int64_t length) {
  const float inverse = 1.0f / exponentials(scores, length, highest_of(scores, length));
  for (int64_t t = 0; t < length; ++t) scores[t] *= inverse;
}

// One row and one key/value head: places what is new into the cache, then its query heads attend.
void attend(const Step& s, int64_t layer, int64_t row, int64_t kv, const float* qkv_row, std::vector<float>& scratch,
            float* attended_row) {
  const Layer& w = s.layers[layer];
  const int64_t dim = s.head_dim, group = s.heads / s.kv_heads, own = s.lengths[row];
  const int64_t at = layer * s.layer_stride + row * s.row_stride + kv * s.head_stride;
  float *keys = s.keys + at, *values = s.values + at;
  place_head(qkv_row + (s.heads + kv) * dim, w.key_norm, s, row, keys + own * dim);
  std::memcpy(values + own * dim, qkv_row + (s.heads + s.kv_heads + kv) * dim, dim * sizeof(float));
  const Prefix* prefix = s.prefixes[row];
  const int64_t before = prefix == nullptr ? 0 : prefix->length, length = before + own + 1;
  if (static_cast<int64_t>(scratch.size()) < group * (length + dim)) scratch.resize(group * (2 * length + dim));
  float *queries = scratch.data(), *scores = queries + group * dim, *out = attended_row + kv * group * dim;
  for (int64_t g = 0; g < group; ++g) {
    place_head(qkv_row + (kv * group + g) * dim, w.query_norm, s, row, queries + g * dim);
    for (int64_t i = 0; i < dim; ++i) queries[g * dim + i] *= s.scale;
  }
  // The next row's keys and values come from memory; those of a prefix are near, its rows follow each other.
  if (before) scores_of(queries, group, prefix->keys[layer] + kv * before * dim, before, dim, 0, scores, length);
  scores_of(queries, group, keys, own + 1, dim, s.row_stride, scores + before, length);
  for (int64_t g = 0; g < group; ++g) softmax(scores + g * length, length);
  std::fill(out, out + group * dim, 0.0f);
  if (before) add_values(scores, length, group, prefix->values[layer] + kv * before * dim, before, dim, 0, out);
  add_values(scores + before, length, group, values, own + 1, dim, s.row_stride, out);
}

}  // namespace

extern "C" {

void chatgrpo_decode(const Step* step) {
  const Step& s = *step;
  const int64_t rows = s.num_rows, width = s.hidden, inner = s.intermediate;
  const int64_t qkv_width = (s.heads + 2 * s.kv_heads) * s.head_dim, attended_width = s.heads * s.head_dim;
  std::vector<float> normed(rows * width), attended(rows * attended_width), act(rows * inner);
  int64_t lowest = 0;
  for (int64_t l = 0; l < s.num_layers; ++l)
    for (const Linear* w : {&s.layers[l].qkv, &s.layers[l].out, &s.layers[l].gate_up, &s.layers[l].down})
      if (w->beside != nullptr) lowest = std::max(lowest, w->beside->low.out);
  std::vector<float> low(rows * lowest);
  Barrier* barrier = nullptr;
#pragma omp parallel num_threads(s.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
#pragma omp single
    barrier = new Barrier(threads);
    std::vector<float> scratch;
    const auto product = [&](const Linear& w, const float* from, float* y, const float* add) {
      if (w.beside != nullptr) {
        const Linear& a = w.beside->low;
        linear_part(a, from, w.in, rows, low.data(), a.out, nullptr, 0, thread, threads);
        barrier->wait();
        const Part mine = part(rows * a.out, thread, threads);
        for (int64_t i = mine.begin; i < mine.end; ++i) low[i] *= w.beside->mask[i];
        barrier->wait();
      }
      linear_part(w, from, w.in, rows, y, w.out, add, w.out, thread, threads);
      // The same shares of the same outputs: each thread adds to what it has just written.
      if (w.beside != nullptr)
        linear_part(w.beside->high, low.data(), w.beside->low.out, rows, y, w.out, y, w.out, thread, threads);
      barrier->wait();
    };
    for (int64_t l = 0; l < s.num_layers; ++l) {
      const Layer& w = s.layers[l];
      float *x = s.x + l * s.x_stride, *qkv = s.qkv + l * s.qkv_stride, *middle = s.middle + l * s.middle_stride,
            *gate_up = s.gate_up + l * s.gate_up_stride, *next = s.x + (l + 1) * s.x_stride;
      norm_part(x, w.input_norm, rows, width, s.eps, normed.data(), thread, threads);
      barrier->wait();
      product(w.qkv, normed.data(), qkv, nullptr);
      const Part mine = part(rows * s.kv_heads, thread, threads);
      for (int64_t item = mine.begin; item < mine.end; ++item) {
        const int64_t row = item % rows;  // heads outside: rows with a common prefix find it in the cache
        attend(s, l, row, item / rows, qkv + row * qkv_width, scratch, attended.data() + row * attended_width);
      }
      barrier->wait();
      product(w.out, attended.data(), middle, x);
      norm_part(middle, w.post_norm, rows, width, s.eps, normed.data(), thread, threads);
      barrier->wait();
      product(w.gate_up, normed.data(), gate_up, nullptr);
      const Part gated = part(rows, thread, threads);
      for (int64_t n = gated.begin; n < gated.end; ++n)
        gated_row(gate_up + n * 2 * inner, inner, act.data() + n * inner);
      barrier->wait();
      product(w.down, act.data(), next, middle);
    }
    norm_part(s.x + s.num_layers * s.x_stride, s.final_norm, rows, width, s.eps, s.hidden_out, thread, threads);
  }
  delete barrier;
}

}  // extern "C"
