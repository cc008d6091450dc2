// Rows to codes with a range of their own each: while a row is in the cache, its range and its codes.

// Scale and zero point of the range that some values have with zero, as ops/row_ranges.py defines them.
class RowRange {
 public:
  explicit RowRange(const QlrRowQuantizer& q)
      : q_(q), levels_(static_cast<float>((1 << (q.truncate ? 8 : q.bits)) - 1)),
        step_(static_cast<float>(255.0 / ((1 << q.bits) - 1))) {}

  void of(const float* row, int64_t cols, float& scale, float& zero) const {
    F::vf low = F::zero(), high = F::zero();
    for (int64_t f = 0; f < cols; f += F::W) {
      const F::vf y = load_columns(row, f, cols);
      low = F::min(low, y);
      high = F::max(high, y);
    }
    alignas(64) float lows[F::W], highs[F::W];
    F::store(lows, low);
    F::store(highs, high);
    const float least = *std::min_element(lows, lows + F::W);
    const float width = *std::max_element(highs, highs + F::W) - least;
    // A width that is infinite gives no scale, and so no value.
    const float own = std::max(width / levels_, 1e-20f) + 0.f * width;
    zero = -least / own;
    if (q_.truncate && q_.aligned) zero = std::nearbyint(zero / step_) * step_;
    else if (q_.truncate || q_.bits > 1) zero = std::nearbyint(zero);
    scale = q_.multiplier * own;
  }
  // How truncated codes are read back.
  void read_back(float& scale, float& zero) const {
    if (!q_.truncate) return;
    scale *= step_;
    zero /= step_;
  }

 private:
  const QlrRowQuantizer& q_;
  float levels_, step_;
};

inline int32_t quantize_own_rows(const float* x, int64_t rows, int64_t cols,
                                 const QlrRowQuantizer& q, uint8_t* packed, float* scale,
                                 float* zero, int threads) {
  constexpr int64_t kBlock = 16;
  const Layout layout(cols, storage_bits(q.bits));
  const RowRange range(q);
  std::atomic<bool> finite{true};
  parallel_rows(rows, cols * 8, threads, [&](int64_t first, int64_t last) {
    bool all = true;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t count = std::min(kBlock, last - begin);
      const float* const values = x + begin * cols;
      float* const s = scale + begin;
      float* const z = zero + begin;
      for (int64_t i = 0; i < count; ++i) range.of(values + i * cols, cols, s[i], z[i]);
      const QlrQuantizer own{s, z, QLR_PER_ROW, q.bits, q.truncate, q.skew};
      const Affines affines(own, count, cols);
      uint8_t* const out = packed + begin * layout.stride;
      all &= affines.fast() ? quantize_rows<true>(values, cols, own, affines, out, 0, count)
                            : quantize_rows<false>(values, cols, own, affines, out, 0, count);
      for (int64_t i = 0; i < count; ++i) range.read_back(s[i], z[i]);
    }
    if (!all) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load() ? QLR_OK : QLR_NOT_FINITE;
}
