// One step of a range that learns: measured, followed, cut into a grid and used, in one call.

// The least and the largest values of columns, and zero, in `lows` and `highs` with room for whole
// vectors. Whether all values are finite.
inline bool spans_of_columns(const float* x, int64_t rows, int64_t cols, float* lows,
                             float* highs) {
  FiniteCheck check{F::zero()};
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t f = 0; f < cols; f += F::W) {
      const F::vf y = check.see(load_columns(x + i * cols, f, cols));
      F::store(lows + f, F::min(F::load(lows + f), y));
      F::store(highs + f, F::max(F::load(highs + f), y));
    }
  return check.holds();
}

inline bool spans_of_rows(const float* x, int64_t rows, int64_t cols, float* lo, float* hi,
                          int threads) {
  std::atomic<bool> finite{true};
  parallel_rows(rows, cols * 4, threads, [&](int64_t first, int64_t last) {
    bool all = true;
    for (int64_t i = first; i < last; ++i) all &= span_of(x + i * cols, cols, lo[i], hi[i]);
    if (!all) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

// The ranges of the groups of a matrix, and whether all values are finite. What spans rows is taken in
// pieces, whose order makes no difference.
inline bool spans(const float* x, int64_t rows, int64_t cols, int axis, float* lo, float* hi,
                  int threads) {
  if (axis == QLR_PER_ROW) return spans_of_rows(x, rows, cols, lo, hi, threads);
  const bool by_column = axis == QLR_PER_COLUMN;
  const int64_t count = rows * cols, groups = by_column ? cols : 1;
  const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(64, count / (1 << 14)));
  const int64_t padded = (groups + F::W - 1) / F::W * F::W;
  Scratch<float> lows(pieces * padded), highs(pieces * padded);
  std::atomic<bool> finite{true};
  parallel_pieces(pieces, pieces, threads, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* const low = lows.data() + p * padded;
      float* const high = highs.data() + p * padded;
      const int64_t whole = by_column ? rows : count;
      const int64_t first = whole * p / pieces, last = whole * (p + 1) / pieces;
      const bool all = by_column ? spans_of_columns(x + first * cols, last - first, cols, low, high)
                                 : span_of(x + first, last - first, *low, *high);
      if (!all) finite.store(false, std::memory_order_relaxed);
    }
  });
  for (int64_t k = 0; k < groups; ++k) {
    lo[k] = hi[k] = 0.f;
    for (int64_t p = 0; p < pieces; ++p) {
      lo[k] = std::min(lo[k], lows[p * padded + k]);
      hi[k] = std::max(hi[k], highs[p * padded + k]);
    }
  }
  return finite.load();
}

// A moving average as torch.lerp computes it, rounding once.
inline float moved(float kept, float seen, float momentum) {
  const float way = seen - kept;
  return std::fabs(momentum) < 0.5f ? std::fma(momentum, way, kept)
                                    : std::fma(momentum - 1.f, way, seen);
}

// The multiplier of ops/multiplier.py: what autograd would be told of it is rounded, too.
inline float floored_multiplier(float gamma, float factor) {
  if (factor != 1.f) gamma = gamma * factor + (gamma - gamma * factor);
  return gamma + (std::max(gamma, 1e-3f) - gamma);
}

inline int32_t observed_quantize(const float* x, int64_t rows, int64_t cols, const QlrObserver& by,
                                 const QlrObserved& out, int threads) {
  if (!spans(x, rows, cols, by.axis, out.lo, out.hi, threads)) return QLR_NOT_FINITE;
  const RangeGrid grid(by.bits, by.truncate, by.aligned);
  const bool own = by.lo == nullptr;
  const int64_t groups = by.axis == QLR_PER_ROW ? rows : by.axis == QLR_PER_COLUMN ? cols : 1;
  for (int64_t k = 0; k < groups; ++k) {
    if (!own) {
      out.lo[k] = moved(by.lo[k], out.lo[k], by.momentum);
      out.hi[k] = moved(by.hi[k], out.hi[k], by.momentum);
    }
    grid.of(out.lo[k], out.hi[k], own, out.own_scale[k], out.zero[k]);
    const float gamma = by.gamma[by.multipliers == 1 ? 0 : k];
    out.scale[k] = floored_multiplier(gamma, by.factor) * out.own_scale[k];
  }
  const QlrQuantizer quantizer{out.scale, out.zero, by.axis, by.bits, by.truncate, 0.f};
  return fake_quantize_as<true>(x, rows, cols, quantizer, out.x_hat, out.mask, threads);
}
