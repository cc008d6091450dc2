// What the columns of a result need, computed once per call and padded to whole vectors. All that a
// vector of columns needs lies side by side, so that one pointer leads to it.

// The code next to a zero point; 0 for one that is NaN.
inline int32_t near_zero_point(float zero, int32_t top) {
  return static_cast<int32_t>(
      std::nearbyint(std::min(std::max(0.f, zero), static_cast<float>(top))));
}

class Columns {
 public:
  // `center` is an integer near the zero point. It is subtracted from the integer sums, where
  // nothing is lost; only the `residual` zero - center meets floating point.
  // clang-format off
  enum Stream {
    kScale, kResidual, kBias,
    kStep, kInverse, kZero,     // of the quantizer, see Affine
    kSlope, kOffset, kLow,      // see QuickCodes
    kThresholds = kBias,        // or, in place of all after the residual, these
    kStreams = kLow + 1
  };
  // clang-format on

  Columns(int64_t cols, const QlrPacked* source)
      : width_((cols + F::W - 1) / F::W * F::W), values_(kStreams * width_) {
    for (int64_t f = 0; f < cols; ++f) at(kScale, f) = 1.f;
    if (source != nullptr) set_source(*source, cols);
  }
  // Columns with the padding.
  int64_t width() const { return width_; }
  int32_t center() const { return center_; }
  bool has_residual() const { return has_residual_; }
  float& at(int stream, int64_t f) {
    return values_[f / F::W * F::W * kStreams + stream * F::W + f % F::W];
  }
  // The streams of F::W columns from f on, and the same from those of the first columns.
  const float* block(int64_t f) const { return block(values_.data(), f); }
  static const float* block(const float* first, int64_t f) { return first + f * kStreams; }
  static F::vf load(const float* block, int stream) { return F::load(block + stream * F::W); }

 private:
  void set_source(const QlrPacked& source, int64_t cols) {
    const int32_t top = (1 << source.bits) - 1;
    const float first = source.axis == QLR_PER_TENSOR ? source.zero[0] : 0.5f * (top + 1);
    center_ = near_zero_point(first, top);
    for (int64_t f = 0; f < cols; ++f) {
      if (source.axis == QLR_PER_ROW) {  // its scales and zero points go with the edges
        at(kResidual, f) = 1.f;
        has_residual_ = true;
        continue;
      }
      const int64_t k = source.axis == QLR_PER_COLUMN ? f : 0;
      at(kScale, f) = source.scale[k];
      at(kResidual, f) = source.zero[k] - static_cast<float>(center_);
      has_residual_ |= at(kResidual, f) != 0.f;
    }
  }

  int64_t width_;
  Scratch<float> values_;
  int32_t center_ = 0;
  bool has_residual_ = false;
};
