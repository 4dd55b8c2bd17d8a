// Decode step, products and sampling of a Llama-shaped decoder in float32, for CPUs.
//
// Weights are packed into panels of NR outputs, [panel][input][NR]: a product reads them as one stream. A row's result
// depends on that row alone, in one order of additions: it has the same bits whatever else is in the batch and however
// many threads share the work. Letters as in llama_weights.py: E hidden, F intermediate, H query heads, K key/value
// heads, D head dimension; N rows.

#include <omp.h>

#include <algorithm>
#include <atomic>
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
// Rows that go through all panels together: their inputs stay in the second-level cache.
constexpr int64_t ROWS_AT_ONCE = 128;

typedef float vec __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VW * 4), aligned(4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
inline vec splat(float s) { return s - vec{}; }

inline float sum(vec v) {
  float total = 0;
  for (int half = VW / 2; half; half /= 2) {
    ivec order;
    for (int i = 0; i < VW; ++i) order[i] = i ^ half;
    v += __builtin_shuffle(v, order);
  }
  total = v[0];
  return total;
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

// All threads meet here. It spins for a while: between two products nobody waits long; a thread whose core is taken by
// another process lets go.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    if (threads_ == 1) return;
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    for (int i = 0; i < 4000; ++i) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

 private:
  int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

struct Part {
  int64_t begin, end;
};
inline Part part(int64_t count, int thread, int threads) {
  return {count * thread / threads, count * (thread + 1) / threads};
}

// R rows of x times one panel. `ahead`: of the next panel, brought near meanwhile.
template <int R>
inline void tile(const float* x, int64_t ldx, const float* panel, int64_t in, const float* ahead, vec (&sums)[MR][NV]) {
  vec acc[R][NV] = {};
  for (int64_t k = 0; k < in; ++k) {
    const vec b0 = load(panel), b1 = load(panel + VW), b2 = load(panel + 2 * VW);
    panel += NR;
    __builtin_prefetch(ahead, 0, 2);
    ahead += VW;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vec a = splat(x[r * ldx + k]);
      acc[r][0] += a * b0;
      acc[r][1] += a * b1;
      acc[r][2] += a * b2;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sums[r][v] = acc[r][v];
}

void tile_of(int rows, const float* x, int64_t ldx, const float* panel, int64_t in, const float* ahead,
             vec (&sums)[MR][NV]) {
  switch (rows) {
    case 1: return tile<1>(x, ldx, panel, in, ahead, sums);
    case 2: return tile<2>(x, ldx, panel, in, ahead, sums);
    case 3: return tile<3>(x, ldx, panel, in, ahead, sums);
    case 4: return tile<4>(x, ldx, panel, in, ahead, sums);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 5: return tile<5>(x, ldx, panel, in, ahead, sums);
    case 6: return tile<6>(x, ldx, panel, in, ahead, sums);
    case 7: return tile<7>(x, ldx, panel, in, ahead, sums);
    case 8: return tile<8>(x, ldx, panel, in, ahead, sums);
#endif
  }
}

}  // namespace

extern "C" {

struct Beside;

// y = x W^T + bias, and + add where given. `bias` and `add` may be null; so may `beside`, which decode steps alone read.
struct Linear {
  const float* panels;
  const float* bias;
  int64_t in, out;
  const Beside* beside;
};

// What adapters add to a product: ((x A^T) * mask) B^T, with the factors of all adapters behind one another. `mask` has
// a row of low.out numbers for each row of x: 1 where the factor is of the row's own adapter, else 0.
struct Beside {
  Linear low, high;
  const float* mask;
};

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

int32_t chatgrpo_panel_width() { return NR; }

void chatgrpo_pack(const float* weight, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride, float* panels,
                   int32_t threads) {
  const int64_t num_panels = (out + NR - 1) / NR;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < num_panels; ++p) {
    float* to = panels + p * in * NR;
    const int cols = static_cast<int>(std::min<int64_t>(NR, out - p * NR));
    const float* from = weight + p * NR * out_stride;
    for (int64_t k = 0; k < in; ++k)
      for (int c = 0; c < NR; ++c) to[k * NR + c] = c < cols ? from[c * out_stride + k * in_stride] : 0.0f;
  }
}

}  // extern "C"

namespace {

void linear_part(const Linear& w, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy, const float* add,
                 int64_t ldadd, int thread, int threads) {
  const int64_t num_panels = (w.out + NR - 1) / NR;
  for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
    const int64_t here = std::min(ROWS_AT_ONCE, rows - first), blocks = (here + MR - 1) / MR;
    const Part mine = part(num_panels * blocks, thread, threads);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      const int64_t p = item / blocks, block = item % blocks, row = first + block * MR;
      const int count = static_cast<int>(std::min<int64_t>(MR, rows - row));
      const float* panel = w.panels + p * w.in * NR;
      // The first three blocks of rows bring a third of the next panel each; behind the last one there is none.
      const float* ahead = p + 1 < num_panels && block < NV ? panel + w.in * (NR + block * VW) : panel;
      vec sums[MR][NV];
      tile_of(count, x + row * ldx, ldx, panel, w.in, ahead, sums);
      const int64_t col = p * NR;
      const int cols = static_cast<int>(std::min<int64_t>(NR, w.out - col));
      for (int r = 0; r < count; ++r) {
        float* to = y + (row + r) * ldy + col;
        const float* plus = add == nullptr ? nullptr : add + (row + r) * ldadd + col;
        if (cols == NR) {
          for (int v = 0; v < NV; ++v) {
            vec value = sums[r][v];
            if (w.bias != nullptr) value += load(w.bias + col + v * VW);
            if (plus != nullptr) value += load(plus + v * VW);
            store(to + v * VW, value);
          }
        } else {
          float values[NR];
          std::memcpy(values, sums[r], sizeof values);
          for (int c = 0; c < cols; ++c)
            to[c] = values[c] + (w.bias ? w.bias[col + c] : 0.0f) + (plus ? plus[c] : 0.0f);
        }
      }
    }
  }
}

float inverse_rms(const float* x, int64_t width, float eps) {
  vec squares = {};
  int64_t i = 0;
  for (; i + VW <= width; i += VW) {
    const vec v = load(x + i);
    squares += v * v;
  }
  float total = sum(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  return 1.0f / std::sqrt(total / width + eps);
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

void rotate(const float* from, const float* cos, const float* sin, int64_t dim, float* to) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = from[i], b = from[half + i];
    to[i] = a * cos[i] - b * sin[i];
    to[half + i] = b * cos[i] + a * sin[i];
  }
}

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
      for (int64_t t = 0; t < length; ++t) {
        const float *q = queries + g * dim, *k = keys + t * dim;
        vec dot = {};
        int64_t i = 0;
        for (; i + VW <= dim; i += VW) dot += load(q + i) * load(k + i);
        float total = sum(dot);
        for (; i < dim; ++i) total += q[i] * k[i];
        scores[g * ld + t] = total;
      }
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
  vec top = splat(scores[0]);
  int64_t t = 0;
  for (; t + VW <= length; t += VW) {
    const vec v = load(scores + t);
    top = v > top ? v : top;
  }
  float highest = largest(top);
  for (int64_t i = t; i < length; ++i) highest = std::max(highest, scores[i]);
  vec totals = {};
  float total = 0;
  for (t = 0; t + VW <= length; t += VW) {
    const vec e = exp_(load(scores + t) - highest);
    store(scores + t, e);
    totals += e;
  }
  for (; t < length; ++t) {
    const vec e = exp_(splat(scores[t] - highest));
    scores[t] = e[0];
    total += e[0];
  }
  const float inverse = 1.0f / (total + sum(totals));
  for (t = 0; t < length; ++t) scores[t] *= inverse;
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

void chatgrpo_linear(const Linear* w, const float* x, int64_t ldx, int64_t rows, float* y, const float* add,
                     int32_t threads) {
#pragma omp parallel num_threads(threads)
  linear_part(*w, x, ldx, rows, y, w->out, add, w->out, omp_get_thread_num(), omp_get_num_threads());
}

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

// Draws a token a row by inverse CDF from `uniforms`, greedily where the temperature is 0. Tells log-probabilities and
// entropies of softmax(logits / temperature); for a greedy row those of temperature 1. N x V logits, as sampling.py.
void chatgrpo_sample(const float* logits, int64_t rows, int64_t vocabulary, const float* temperatures,
                     const float* uniforms, int64_t* tokens, float* logprobs, float* entropies, int32_t threads) {
  constexpr int64_t CHUNK = 64 * VW;
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> ends((vocabulary + CHUNK - 1) / CHUNK);
    std::vector<float> weights(CHUNK);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < rows; ++n) {
      const float* z = logits + n * vocabulary;
      const bool greedy = temperatures[n] == 0.0f;
      const float inverse = greedy ? 1.0f : 1.0f / temperatures[n];
      vec top = splat(z[0]);
      int64_t i = 0;
      for (; i + VW <= vocabulary; i += VW) {
        const vec v = load(z + i);
        top = v > top ? v : top;
      }
      float highest = largest(top);
      for (; i < vocabulary; ++i) highest = std::max(highest, z[i]);
      // Sum of the weights w = exp(s), s = (z - max) / temperature, a chunk at a time, and of w s for the entropy.
      double total = 0, weighted = 0;
      for (int64_t c = 0; c * CHUNK < vocabulary; ++c) {
        const int64_t end = std::min(vocabulary, (c + 1) * CHUNK);
        vec w_sum = {}, ws_sum = {};
        float w_rest = 0, ws_rest = 0;
        for (i = c * CHUNK; i + VW <= end; i += VW) {
          const vec shifted = (load(z + i) - highest) * inverse, w = exp_(shifted);
          w_sum += w;
          ws_sum += shifted < splat(-87.0f) ? vec{} : w * shifted;
        }
        for (; i < end; ++i) {
          const float shifted = (z[i] - highest) * inverse, w = exp_(splat(shifted))[0];
          w_rest += w;
          if (w != 0.0f) ws_rest += w * shifted;
        }
        total += sum(w_sum) + w_rest;
        weighted += sum(ws_sum) + ws_rest;
        ends[c] = total;
      }
      int64_t token = -1;
      if (greedy) {
        token = std::find(z, z + vocabulary, highest) - z;
      } else {
        // The first token whose cumulated weight exceeds what is wanted; rounding may ask for more than there is, the
        // last token with any weight is meant then.
        const double wanted = static_cast<double>(uniforms[n]) * total;
        int64_t c = std::upper_bound(ends.begin(), ends.end(), wanted) - ends.begin();
        if (c == static_cast<int64_t>(ends.size())) c = std::lower_bound(ends.begin(), ends.end(), total) - ends.begin();
        double reached = c == 0 ? 0.0 : ends[c - 1];
        const int64_t end = std::min(vocabulary, (c + 1) * CHUNK);
        int64_t j = c * CHUNK;
        for (; j + VW <= end; j += VW) store(weights.data() + (j - c * CHUNK), exp_((load(z + j) - highest) * inverse));
        for (; j < end; ++j) weights[j - c * CHUNK] = exp_(splat((z[j] - highest) * inverse))[0];
        for (j = c * CHUNK; j < end; ++j) {
          const float w = weights[j - c * CHUNK];
          if (w == 0.0f) continue;
          token = j;
          reached += w;
          if (reached > wanted) break;
        }
      }
      const double log_total = std::log(total);
      tokens[n] = token;
      logprobs[n] = static_cast<float>(static_cast<double>((z[token] - highest) * inverse) - log_total);
      entropies[n] = static_cast<float>(log_total - weighted / total);
    }
  }
}

}  // extern "C"
