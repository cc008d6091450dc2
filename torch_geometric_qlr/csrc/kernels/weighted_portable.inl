// Weighted sums of packed rows, in plain C++: out[f] (+)= sum of weight times (code - center).

// The vector kernels' form of the weights.
template <int>
struct Digits {
  static constexpr bool kLasting = false;
  void fill(const WeightBlock&, int, int32_t) {}
};

template <int B>
inline void weighted_block(const PackedRows& rows, const WeightBlock& block, const Digits<B>&,
                           int64_t e, int count, int32_t center, float* out, bool first) {
  const Layout& layout = rows.layout;
  const int codes = layout.unit * (8 / B);
  for (int64_t u = 0; u < layout.units; ++u) {
    double sum[32 * (8 / B)] = {0};  // a block at a time in double: no error grows with the degree
    for (int i = 0; i < count; ++i) {
      const uint8_t* unit = rows.row(e + i) + u * layout.unit;
      if (u == 0) rows.prefetch(e + i, 0, layout.stride);
      for (int k = 0; k < 8 / B; ++k)
        for (int j = 0; j < layout.unit; ++j)
          sum[k * layout.unit + j] += static_cast<double>(block.value[i]) *
                                      (((unit[j] >> (B * k)) & ((1 << B) - 1)) - center);
    }
    for (int f = 0; f < codes; ++f) {
      float& to = out[u * codes + f];
      to = (first ? 0.f : to) + static_cast<float>(sum[f]);
    }
  }
}

inline int32_t edge_digits(const QlrGraph&, int32_t*, int) { return QLR_UNSUPPORTED; }
