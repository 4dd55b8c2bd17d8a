// Attention of packed segments that see what lies before them, forward and backward; so of a whole update.
#pragma once

#include "products.h"

namespace {

// Packs `length` rows of `dim` floats, `ld` apart, as a weight whose outputs they are (n x D: scores) ...
void pack_rows(const float* rows, int64_t ld, int64_t length, int64_t dim, std::vector<float>& panels) {
  const int64_t count = (length + NR - 1) / NR;
  panels.resize(count * dim * NR);
  for (int64_t p = 0; p < count; ++p)
    for (int64_t c = 0; c < NR; ++c) {
      const int64_t t = p * NR + c;
      float* to = panels.data() + p * dim * NR + c;
      for (int64_t k = 0; k < dim; ++k) to[k * NR] = t < length ? rows[t * ld + k] : 0.0f;
    }
}

// ... or whose inputs they are (D x n: sums of rows).
void pack_columns(const float* rows, int64_t ld, int64_t length, int64_t dim, std::vector<float>& panels) {
  const int64_t count = (dim + NR - 1) / NR;
  panels.resize(count * length * NR);
  for (int64_t p = 0; p < count; ++p)
    for (int64_t t = 0; t < length; ++t)
      for (int64_t c = 0; c < NR; ++c)
        panels[(p * length + t) * NR + c] = p * NR + c < dim ? rows[t * ld + p * NR + c] : 0.0f;
}

// y = x W^T over the first `used` of the weight's `in` inputs, added to what is there or in its place, for at most MR
// rows; y has room for whole vectors.
void small_product(const float* x, int64_t ldx, int rows, const std::vector<float>& panels, int64_t in, int64_t used,
                   int64_t out, bool adds, float* y, int64_t ldy) {
  for (int64_t p = 0; p * NR < out; ++p) {
    const float* panel = panels.data() + p * in * NR;
    const int vectors = static_cast<int>(std::min<int64_t>(NV, (out - p * NR + VW - 1) / VW));
    vec sums[MR][NV] = {};
    if (vectors == 1) tile_of<1, 1>(rows, x, ldx, panel, used, panel, sums);
    else if (vectors == 2) tile_of<2, 1>(rows, x, ldx, panel, used, panel, sums);
    else tile_of<3, 1>(rows, x, ldx, panel, used, panel, sums);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) {
        float* to = y + r * ldy + p * NR + v * VW;
        store(to, adds ? load(to) + sums[r][v] : sums[r][v]);
      }
  }
}

// to[t] += sum_r weights[r][t] rows[r], t below `length`.
void add_outer(const float* weights, int64_t ldw, const float* rows, int64_t ldr, int count, int64_t length, int64_t dim,
               float* to, int64_t ldt) {
  int64_t i = 0;
  if (count == MR)  // two vectors of every row stay in registers
    for (; i + 2 * VW <= dim; i += 2 * VW) {
      vec held[MR][2];
      for (int r = 0; r < MR; ++r)
        for (int v = 0; v < 2; ++v) held[r][v] = load(rows + r * ldr + i + v * VW);
      for (int64_t t = 0; t < length; ++t) {
        float* place = to + t * ldt + i;
        vec sums[2] = {load(place), load(place + VW)};
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const vec w = splat(weights[r * ldw + t]);
          sums[0] += w * held[r][0];
          sums[1] += w * held[r][1];
        }
        store(place, sums[0]);
        store(place + VW, sums[1]);
      }
    }
  for (int64_t t = 0; t < length; ++t) {
    int64_t j = i;
    for (; j + VW <= dim; j += VW) {
      vec total = load(to + t * ldt + j);
      for (int r = 0; r < count; ++r) total += weights[r * ldw + t] * load(rows + r * ldr + j);
      store(to + t * ldt + j, total);
    }
    for (; j < dim; ++j)
      for (int r = 0; r < count; ++r) to[t * ldt + j] += weights[r * ldw + t] * rows[r * ldr + j];
  }
}

// Keys and values of a range of tokens for one key/value head, in the layouts that products want.
struct Range {
  int64_t start = 0, length = 0;
  std::vector<float> keys, values_by_sum, values, keys_by_sum;

  // Of `count` tokens from `first` on, `ld` floats apart; `back` for the gradients.
  void take(const float* key, const float* value, int64_t ld, int64_t first, int64_t count, int64_t dim, bool back) {
    start = first, length = count;
    pack_rows(key + first * ld, ld, count, dim, keys);
    pack_columns(value + first * ld, ld, count, dim, values_by_sum);
    if (back) {
      pack_rows(value + first * ld, ld, count, dim, values);
      pack_columns(key + first * ld, ld, count, dim, keys_by_sum);
    }
  }
};

inline int64_t whole_panels(int64_t count) { return (count + NR - 1) / NR * NR; }

// Attention of one segment (see SegmentLayout) and one key/value head: its tokens see `before` and, causally, `own`.
// Writes `out`; with `d_out` the gradients by queries, keys and values are added to `d_qkv`.
struct Segment {
  const float* qkv;
  int64_t ld, heads, kv_heads, dim;
  float scale;
  float* out;
  const float* d_out;
  float* d_qkv;

  void attend(const Range& before, const Range& own, int64_t kv, std::vector<float>& scratch) const {
    const int64_t group = heads / kv_heads, out_ld = heads * dim, rows = own.length * group;
    const int64_t padded_before = whole_panels(before.length), width = padded_before + whole_panels(own.length);
    const int64_t padded_dim = whole_panels(dim);
    scratch.assign(MR * (2 * width + 2 * dim + padded_dim), 0.0f);
    float *weights = scratch.data(), *d_weights = weights + MR * width, *queries = d_weights + MR * width,
          *d_rows = queries + MR * dim, *result = d_rows + MR * dim;
    for (int64_t first = 0; first < rows; first += MR) {
      const int count = static_cast<int>(std::min<int64_t>(MR, rows - first));
      const int64_t seen = (first + count - 1) / group + 1;  // own tokens that the last row sees
      for (int r = 0; r < count; ++r) {
        const int64_t token = own.start + (first + r) / group, head = kv * group + (first + r) % group;
        const float* q = qkv + token * ld + head * dim;
        for (int64_t i = 0; i < dim; ++i) queries[r * dim + i] = q[i] * scale;
        if (d_out != nullptr) std::memcpy(d_rows + r * dim, d_out + token * out_ld + head * dim, dim * sizeof(float));
      }
      float* own_weights = weights + padded_before;
      if (before.length) small_product(queries, dim, count, before.keys, dim, dim, before.length, false, weights, width);
      small_product(queries, dim, count, own.keys, dim, dim, seen, false, own_weights, width);
      for (int r = 0; r < count; ++r)
        softmax_of(weights + r * width, before.length, own_weights + r * width, (first + r) / group + 1, seen);
      if (before.length)
        small_product(weights, width, count, before.values_by_sum, before.length, before.length, dim, false, result, padded_dim);
      small_product(own_weights, width, count, own.values_by_sum, own.length, seen, dim, before.length > 0, result,
                      padded_dim);
      for (int r = 0; r < count; ++r) {
        const int64_t token = own.start + (first + r) / group, head = kv * group + (first + r) % group;
        std::memcpy(out + token * out_ld + head * dim, result + r * padded_dim, dim * sizeof(float));
      }
      if (d_out == nullptr) continue;
      float* d_own = d_weights + padded_before;
      float *d_key = d_qkv + (heads + kv) * dim, *d_value = d_qkv + (heads + kv_heads + kv) * dim;
      add_outer(weights, width, d_rows, dim, count, before.length, dim, d_value + before.start * ld, ld);
      add_outer(own_weights, width, d_rows, dim, count, seen, dim, d_value + own.start * ld, ld);
      if (before.length) small_product(d_rows, dim, count, before.values, dim, dim, before.length, false, d_weights, width);
      small_product(d_rows, dim, count, own.values, dim, dim, seen, false, d_own, width);
      // By the scores: w (dw - sum of w dw); a weight of 0 lets nothing through.
      for (int r = 0; r < count; ++r) {
        float *w = weights + r * width, *d = d_weights + r * width;
        const float mean = dot(w, d, before.length) + dot(w + padded_before, d + padded_before, seen);
        for (int64_t t = 0; t < before.length; ++t) d[t] = w[t] * (d[t] - mean);
        for (int64_t t = padded_before; t < padded_before + seen; ++t) d[t] = w[t] * (d[t] - mean);
      }
      if (before.length)
        small_product(d_weights, width, count, before.keys_by_sum, before.length, before.length, dim, false, result, padded_dim);
      small_product(d_own, width, count, own.keys_by_sum, own.length, seen, dim, before.length > 0, result,
                      padded_dim);
      for (int r = 0; r < count; ++r) {
        const int64_t token = own.start + (first + r) / group, head = kv * group + (first + r) % group;
        float* to = d_qkv + token * ld + head * dim;
        for (int64_t i = 0; i < dim; ++i) to[i] = result[r * padded_dim + i] * scale;
      }
      add_outer(d_weights, width, queries, dim, count, before.length, dim, d_key + before.start * ld, ld);
      add_outer(d_own, width, queries, dim, count, seen, dim, d_key + own.start * ld, ld);
    }
  }

 private:
  // Over all of `before` and the first `visible` of `own`; the others of the `seen` become 0.
  static void softmax_of(float* before, int64_t num_before, float* own, int64_t visible, int64_t seen) {
    float highest = highest_of(own, visible);
    if (num_before) highest = std::max(highest, highest_of(before, num_before));
    const float total = exponentials(before, num_before, highest) + exponentials(own, visible, highest);
    const float inverse = 1.0f / total;
    for (int64_t t = 0; t < num_before; ++t) before[t] *= inverse;
    for (int64_t t = 0; t < visible; ++t) own[t] *= inverse;
    for (int64_t t = visible; t < seen; ++t) own[t] = 0.0f;
  }
};

}  // namespace

extern "C" {

// Attention over packed segments. `qkv`: T x (H + 2K) D, rotated. `segments`: (prefix start, prefix length, start,
// length) each; those from clusters[c] to clusters[c + 1] have the same prefix or are it. Writes `out`, T x H D; with
// `d_out` adds to `d_qkv`, which the caller zeroes.
void chatgrpo_attention(const float* qkv, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                        const int64_t* segments, const int64_t* clusters, int64_t num_clusters, float* out,
                        const float* d_out, float* d_qkv, int32_t threads) {
  const int64_t ld = (heads + 2 * kv_heads) * dim;
  const Segment work{qkv, ld, heads, kv_heads, dim, scale, out, d_out, d_qkv};
#pragma omp parallel num_threads(threads)
  {
    Range before, own;
    std::vector<float> scratch;
    // A key's gradient is the sum over a cluster: one thread makes it, in the order of the segments.
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < num_clusters * kv_heads; ++item) {
      const int64_t c = item / kv_heads, kv = item % kv_heads;
      const float *key = qkv + (heads + kv) * dim, *value = key + kv_heads * dim;
      int64_t prefix_start = -1;
      for (int64_t i = clusters[c]; i < clusters[c + 1]; ++i) {
        const int64_t* segment = segments + 4 * i;
        if (segment[1] == 0) {
          before.start = before.length = 0;
          prefix_start = -1;
        } else if (segment[0] != prefix_start || segment[1] != before.length) {
          before.take(key, value, ld, segment[0], segment[1], dim, d_out != nullptr);
          prefix_start = segment[0];
        }
        own.take(key, value, ld, segment[2], segment[3], dim, d_out != nullptr);
        work.attend(before, own, kv, scratch);
      }
    }
  }
}

}  // extern "C"
