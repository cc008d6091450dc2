// Rows to codes with a range of their own each: while a row is in the cache, its range and its codes.

// Scale and zero point of a row, as ops/row_ranges.py defines them.
class RowRange {
 public:
  explicit RowRange(const QlrRowQuantizer& q) : q_(q), grid_(q.bits, q.truncate, q.aligned) {}

  void of(const float* row, int64_t cols, float& scale, float& zero) const {
    float least, most;
    span_of(row, cols, least, most);
    grid_.of(least, most, true, scale, zero);
    scale = q_.multiplier * scale;
  }
  // How truncated codes are read back.
  void read_back(float& scale, float& zero) const {
    if (!q_.truncate) return;
    scale *= grid_.step();
    zero /= grid_.step();
  }

 private:
  const QlrRowQuantizer& q_;
  RangeGrid grid_;
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
      all &= quantize_rows(values, cols, own, affines, out, 0, count);
      for (int64_t i = 0; i < count; ++i) range.read_back(s[i], z[i]);
    }
    if (!all) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load() ? QLR_OK : QLR_NOT_FINITE;
}
