// The fast path's work in float32 on CPUs, as one library. Letters as in llama_weights.py: E hidden, F intermediate, H
// query heads, K key/value heads, D head dimension; N rows, T tokens, V vocabulary.

#include "decode.h"
#include "prefill.h"
#include "products.h"
#include "rows.h"
#include "sampling.h"
#include "segments.h"
