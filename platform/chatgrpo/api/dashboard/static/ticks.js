// Round numbers for an axis.

/** About `count` round values that cover [low, high]. */
export function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const off = (step) => Math.abs(Math.log(step / raw));
  const step = [1, 2, 5, 10].map((m) => m * power).reduce((a, b) => (off(b) < off(a) ? b : a));
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** [low, high] of the values with some air; never empty. */
export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
  // A figure that is never negative (a length, a share) has no use for space below zero.
  return [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
}

/** At most about `most` points: the lowest and the highest of each stretch, so that no spike is lost. */
export function thin(points, most) {
  if (points.length <= most) return points;
  const size = Math.ceil((2 * points.length) / most);
  const kept = [];
  for (let start = 0; start < points.length; start += size) {
    const stretch = points.slice(start, start + size);
    const low = stretch.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = stretch.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

/** Exponential moving average, free of the bias towards its first value. */
export function smooth(points, weight = 0.85) {
  let sum = 0;
  let norm = 0;
  return points.map(([x, y]) => {
    sum = weight * sum + (1 - weight) * y;
    norm = weight * norm + (1 - weight);
    return [x, sum / norm];
  });
}
