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
  void read_back(float& scale, float& zero) const {
    if (q_.truncate) grid_.read_back(scale, zero);
  }

 private:
  const QlrRowQuantizer& q_;
  RangeGrid grid_;
};

// Rows with numbers that are found on the way, and left as they are read back.
class OwnRowPacker {
 public:
  OwnRowPacker(const QlrRowQuantizer& q, int64_t cols)
      : q_(q), cols_(cols), stride_(Layout(cols, storage_bits(q.bits)).stride), range_(q) {}

  // Whether all values of so many rows were finite.
  bool pack(const float* x, int64_t rows, uint8_t* packed, float* scale, float* zero) const {
    bool all = true;
    for (int64_t begin = 0; begin < rows; begin += kBlock) {
      const int64_t count = std::min(kBlock, rows - begin);
      const float* const values = x + begin * cols_;
      float* const s = scale + begin;
      float* const z = zero + begin;
      for (int64_t i = 0; i < count; ++i) range_.of(values + i * cols_, cols_, s[i], z[i]);
      const QlrQuantizer own{s, z, QLR_PER_ROW, q_.bits, q_.truncate, q_.skew};
      const Affines affines(own, count, cols_);
      all &= quantize_rows(values, cols_, own, affines, packed + begin * stride_, 0, count);
      for (int64_t i = 0; i < count; ++i) range_.read_back(s[i], z[i]);
    }
    return all;
  }

 private:
  static constexpr int64_t kBlock = 16;  // rows that are in the first cache until they are coded

  const QlrRowQuantizer& q_;
  int64_t cols_, stride_;
  RowRange range_;
};

inline int32_t quantize_own_rows(const float* x, int64_t rows, int64_t cols,
                                 const QlrRowQuantizer& q, uint8_t* packed, float* scale,
                                 float* zero, int threads) {
  const OwnRowPacker packer(q, cols);
  const int64_t stride = Layout(cols, storage_bits(q.bits)).stride;
  std::atomic<bool> finite{true};
  parallel_rows(rows, cols * 8, threads, [&](int64_t first, int64_t last) {
    const bool all = packer.pack(x + first * cols, last - first, packed + first * stride,
                                 scale + first, zero + first);
    if (!all) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load() ? QLR_OK : QLR_NOT_FINITE;
}
