// Ranges of values, and the grid that a range is cut into.

// The least and the largest of some values and zero. Whether all of them are finite.
inline bool span_of(const float* x, int64_t count, float& least, float& most) {
  constexpr int kWays = 4;  // at once: one chain of comparisons would wait for itself
  F::vf low[kWays], high[kWays];
  FiniteCheck check[kWays];
  for (int k = 0; k < kWays; ++k) low[k] = high[k] = check[k].sum = F::zero();
  int64_t f = 0;
  const auto see = [&](int k, F::vf y) QLR_ALWAYS_INLINE {
    low[k] = F::min(low[k], check[k].see(y));
    high[k] = F::max(high[k], y);
  };
  for (; f + kWays * F::W <= count; f += kWays * F::W)
    for (int k = 0; k < kWays; ++k) see(k, F::load(x + f + k * F::W));
  for (; f < count; f += F::W) see(0, load_columns(x, f, count));
  for (int k = 1; k < kWays; ++k) {
    low[0] = F::min(low[0], low[k]);
    high[0] = F::max(high[0], high[k]);
    check[0].sum = F::add(check[0].sum, check[k].sum);
  }
  least = -F::largest(F::sub(F::zero(), low[0]));
  most = F::largest(high[0]);
  return check[0].holds();
}

// As ops/range_grid.py defines it.
class RangeGrid {
 public:
  RangeGrid(int bits, bool truncate, bool aligned)
      : levels_(static_cast<float>((1 << (truncate ? 8 : bits)) - 1)),
        step_(static_cast<float>(255.0 / ((1 << bits) - 1))), aligned_(truncate && aligned),
        rounded_(truncate || bits > 1) {}

  // Scale at a multiplier of one, and zero point. A width that is infinite gives no scale, and so no
  // value, where the range is that of the values themselves.
  void of(float lo, float hi, bool own, float& scale, float& zero) const {
    const float width = hi - lo;
    scale = std::max(width / levels_, 1e-20f);
    if (own) scale += 0.f * width;
    zero = -lo / scale;
    if (aligned_) zero = std::nearbyint(zero / step_) * step_;
    else if (rounded_) zero = std::nearbyint(zero);
  }
  // How truncated codes are read back.
  void read_back(float& scale, float& zero) const {
    scale *= step_;
    zero /= step_;
  }

 private:
  float levels_, step_;
  bool aligned_, rounded_;
};
