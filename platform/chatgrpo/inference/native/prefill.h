// Attention of new tokens to themselves and to what their rows hold in the cache.
#pragma once

#include "decode.h"
#include "segments.h"

extern "C" {

// See kv_cache.Prompt: tokens [start, start + length) of the forward, for cache rows [row, row + rows), whose first
// `past` tokens are held. They follow `prefix`, which may be null, or with `fills` become it.
struct Prompt {
  int64_t start, length, row, rows, past;
  const Prefix* prefix;
  int64_t fills;
};

}  // extern "C"

namespace {

// The layer's keys or values in the cache, rows x K x length x D.
struct Held {
  float* data;
  int64_t row_stride, head_stride;
  float* at(int64_t row, int64_t kv) const { return data + row * row_stride + kv * head_stride; }
};

void copy_rows(const float* from, int64_t ld, int64_t count, int64_t dim, float* to) {
  for (int64_t t = 0; t < count; ++t) std::memcpy(to + t * dim, from + t * ld, dim * sizeof(float));
}

// Puts the new keys or values of one head where they are to be held.
void place(const Prompt& prompt, const float* fresh, int64_t ld, int64_t kv, int64_t dim, const Held& held,
           const float* prefix) {
  if (prompt.fills) {
    // Memory of the caller's, see prefill.py.
    copy_rows(fresh, ld, prompt.length, dim, const_cast<float*>(prefix) + kv * prompt.length * dim);
    return;
  }
  for (int64_t row = prompt.row; row < prompt.row + prompt.rows; ++row)
    copy_rows(fresh, ld, prompt.length, dim, held.at(row, kv) + prompt.past * dim);
}

}  // namespace

extern "C" {

// `qkv`: T x (H + 2K) D, rotated; `out`: T x H D. Work is shared by prompt and key/value head: a single prompt keeps no
// more threads busy than there are such heads.
void chatgrpo_prefill_attention(const float* qkv, int64_t heads, int64_t kv_heads, int64_t dim, float scale, int64_t layer,
                                const Prompt* prompts, int64_t num_prompts, float* keys, float* values,
                                int64_t row_stride, int64_t head_stride, float* out, int32_t threads) {
  const int64_t ld = (heads + 2 * kv_heads) * dim;
  const Segment work{qkv, ld, heads, kv_heads, dim, scale, out, nullptr, nullptr};
  const Held held_keys{keys, row_stride, head_stride}, held_values{values, row_stride, head_stride};
#pragma omp parallel num_threads(threads)
  {
    Range before, own;
    std::vector<float> scratch, rows;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < num_prompts * kv_heads; ++item) {
      const Prompt& prompt = prompts[item / kv_heads];
      const int64_t kv = item % kv_heads;
      const float *key = qkv + (heads + kv) * dim, *value = key + kv_heads * dim;
      const float* prefix_keys = prompt.prefix == nullptr ? nullptr : prompt.prefix->keys[layer];
      const float* prefix_values = prompt.prefix == nullptr ? nullptr : prompt.prefix->values[layer];
      const int64_t shared = prefix_keys == nullptr || prompt.fills ? 0 : prompt.prefix->length;
      before.length = shared + prompt.past;
      if (before.length) {
        rows.resize(2 * before.length * dim);
        float *all_keys = rows.data(), *all_values = all_keys + before.length * dim;
        if (shared) {
          copy_rows(prefix_keys + kv * shared * dim, dim, shared, dim, all_keys);
          copy_rows(prefix_values + kv * shared * dim, dim, shared, dim, all_values);
        }
        copy_rows(held_keys.at(prompt.row, kv), dim, prompt.past, dim, all_keys + shared * dim);
        copy_rows(held_values.at(prompt.row, kv), dim, prompt.past, dim, all_values + shared * dim);
        before.take(all_keys, all_values, dim, 0, before.length, dim, false);
      }
      own.take(key, value, ld, prompt.start, prompt.length, dim, false);
      work.attend(before, own, kv, scratch);
      place(prompt, key + prompt.start * ld, ld, kv, dim, held_keys, prefix_keys);
      place(prompt, value + prompt.start * ld, ld, kv, dim, held_values, prefix_values);
    }
  }
}

}  // extern "C"
