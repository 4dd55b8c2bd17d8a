// Products with weights packed into panels of NR outputs, [panel][input][NR]: a product reads them as one stream.
//
// A row's result depends on that row alone, in one order of additions: it has the same bits whatever else is in the
// batch and however many threads share the work.
#pragma once

#include "threads.h"
#include "vectors.h"

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

}  // extern "C"

namespace {

// Adds R rows of x times the first V vectors of a panel to what `sums` holds. `ahead`: what is read next, of which
// `in` * A vectors are brought near meanwhile.
template <int R, int V, int A>
inline void tile(const float* x, int64_t ldx, const float* panel, int64_t in, const float* ahead, vec (&sums)[MR][NV]) {
  vec acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = sums[r][v];
  for (int64_t k = 0; k < in; ++k) {
    vec b[V];
    for (int v = 0; v < V; ++v) b[v] = load(panel + v * VW);
    panel += NR;
    for (int v = 0; v < A; ++v) __builtin_prefetch(ahead + v * VW, 0, 2);
    ahead += A * VW;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vec a = splat(x[r * ldx + k]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) acc[r][v] += a * b[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sums[r][v] = acc[r][v];
}

template <int V, int A>
void tile_of(int rows, const float* x, int64_t ldx, const float* panel, int64_t in, const float* ahead,
             vec (&sums)[MR][NV]) {
  switch (rows) {
    case 1: return tile<1, V, A>(x, ldx, panel, in, ahead, sums);
    case 2: return tile<2, V, A>(x, ldx, panel, in, ahead, sums);
    case 3: return tile<3, V, A>(x, ldx, panel, in, ahead, sums);
    case 4: return tile<4, V, A>(x, ldx, panel, in, ahead, sums);
  }
  if constexpr (MR > 4) {
    switch (rows) {
      case 5: return tile<5, V, A>(x, ldx, panel, in, ahead, sums);
      case 6: return tile<6, V, A>(x, ldx, panel, in, ahead, sums);
      case 7: return tile<7, V, A>(x, ldx, panel, in, ahead, sums);
      case 8: return tile<8, V, A>(x, ldx, panel, in, ahead, sums);
    }
  }
}

// Writes the sums of one tile, and what is added to them.
void store_tile(const Linear& w, const vec (&sums)[MR][NV], int count, int64_t row, int64_t col, float* y, int64_t ldy,
                const float* add, int64_t ldadd) {
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

// Memory gives a panel more slowly than the first block of rows could use it. So all blocks take a short piece of the
// panel in turn, and each brings its share of the next piece near: memory is read all the time, at an even pace.
void linear_part(const Linear& w, const float* x, int64_t ldx, int64_t rows, float* y, int64_t ldy, const float* add,
                 int64_t ldadd, int thread, int threads) {
  const int64_t num_panels = (w.out + NR - 1) / NR;
  const float* const end = w.panels + num_panels * w.in * NR;
  vec sums[ROWS_AT_ONCE / MR][MR][NV];
  for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
    const int64_t here = std::min(ROWS_AT_ONCE, rows - first), blocks = (here + MR - 1) / MR;
    const Part mine = part(num_panels * blocks, thread, threads);
    for (int64_t item = mine.begin; item < mine.end;) {
      const int64_t p = item / blocks, from = item % blocks, to = std::min(blocks, from + mine.end - item);
      const float* panel = w.panels + p * w.in * NR;
      std::memset(sums, 0, (to - from) * sizeof sums[0]);
      for (int64_t k = 0; k < w.in; k += INPUTS_AT_ONCE) {
        const int64_t inputs = std::min(INPUTS_AT_ONCE, w.in - k), share = inputs * NR / (to - from);
        const float* next = panel + (k + inputs) * NR;
        const auto work = to - from == 1 ? tile_of<NV, NV> : to - from == 2 ? tile_of<NV, (NV + 1) / 2> : tile_of<NV, 1>;
        for (int64_t block = from; block < to; ++block) {
          const int64_t row = first + block * MR;
          const float* ahead = next < end ? next + (block - from) * share : panel;
          work(static_cast<int>(std::min<int64_t>(MR, rows - row)), x + row * ldx + k, ldx, panel + k * NR, inputs, ahead,
               sums[block - from]);
        }
      }
      for (int64_t block = from; block < to; ++block) {
        const int64_t row = first + block * MR;
        store_tile(w, sums[block - from], static_cast<int>(std::min<int64_t>(MR, rows - row)), row, p * NR, y, ldy, add,
                   ldadd);
      }
      item += to - from;
    }
  }
}

}  // namespace

extern "C" {

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

void chatgrpo_linear(const Linear* w, const float* x, int64_t ldx, int64_t rows, float* y, const float* add,
                     int32_t threads) {
#pragma omp parallel num_threads(threads)
  linear_part(*w, x, ldx, rows, y, w->out, add, w->out, omp_get_thread_num(), omp_get_num_threads());
}

}  // extern "C"
