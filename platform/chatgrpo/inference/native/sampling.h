// From logits to tokens and their log-probabilities.
#pragma once

#include "vectors.h"

namespace {

// Of softmax(z * inverse) over a vocabulary: with s = (z - highest) * inverse and w = exp(s), the sums of w and of w s.
struct Softmax {
  static constexpr int64_t CHUNK = 64 * VW;
  const float* z;
  int64_t vocabulary;
  float inverse, highest;
  double total = 0, weighted = 0;

  // `ends`: the sum of w up to the end of every chunk; may be null.
  Softmax(const float* logits, int64_t count, float inverse_temperature, double* ends)
      : z(logits), vocabulary(count), inverse(inverse_temperature) {
    vec top = splat(z[0]);
    int64_t i = 0;
    for (; i + VW <= vocabulary; i += VW) {
      const vec v = load(z + i);
      top = v > top ? v : top;
    }
    highest = largest(top);
    for (; i < vocabulary; ++i) highest = std::max(highest, z[i]);
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
      if (ends != nullptr) ends[c] = total;
    }
  }

  float logprob(int64_t token) const {
    return static_cast<float>(static_cast<double>((z[token] - highest) * inverse) - std::log(total));
  }
  float entropy() const { return static_cast<float>(std::log(total) - weighted / total); }
};

}  // namespace

extern "C" {

// Draws a token a row by inverse CDF from `uniforms`, greedily where the temperature is 0. Tells log-probabilities and
// entropies of softmax(logits / temperature); for a greedy row those of temperature 1. N x V logits, as sampling.py.
void chatgrpo_sample(const float* logits, int64_t rows, int64_t vocabulary, const float* temperatures,
                     const float* uniforms, int64_t* tokens, float* logprobs, float* entropies, int32_t threads) {
  constexpr int64_t CHUNK = Softmax::CHUNK;
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> ends((vocabulary + CHUNK - 1) / CHUNK);
    std::vector<float> weights(CHUNK);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < rows; ++n) {
      const float* z = logits + n * vocabulary;
      const bool greedy = temperatures[n] == 0.0f;
      const float inverse = greedy ? 1.0f : 1.0f / temperatures[n];
      const Softmax softmax(z, vocabulary, inverse, ends.data());
      const float highest = softmax.highest;
      const double total = softmax.total;
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
      tokens[n] = token;
      logprobs[n] = softmax.logprob(token);
      entropies[n] = softmax.entropy();
    }
  }
}

// Log-probabilities of given tokens and entropies of softmax(scale * logits).
void chatgrpo_logprobs(const float* logits, int64_t rows, int64_t vocabulary, float scale, const int64_t* tokens,
                       float* logprobs, float* entropies, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t n = 0; n < rows; ++n) {
    const Softmax softmax(logits + n * vocabulary, vocabulary, scale, nullptr);
    logprobs[n] = softmax.logprob(tokens[n]);
    entropies[n] = softmax.entropy();
  }
}

}  // extern "C"
