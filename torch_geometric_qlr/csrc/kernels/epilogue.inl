// A row of sums to a row of the result: affine map, bias, addend, relu, and then either floats or
// codes, which are quantized and packed here so that they never exist as floats in memory.

// What the columns of a result need, computed once per call and padded to whole vectors. All that a
// vector of columns needs lies side by side, so that one pointer leads to it.
class Columns {
 public:
  // `center` is an integer near the zero point. It is subtracted from the integer sums, where
  // nothing is lost; only the `residual` zero - center meets floating point.
  enum Stream {
    kScale, kResidual, kBias,
    kStep, kInverse, kZero,     // of the quantizer, see Affine
    kSlope, kOffset, kLow,      // see QuickCodes
    kThresholds = kBias,        // or, in place of all after the residual, these
    kStreams = kLow + 1
  };

  Columns(int64_t cols, const QlrPacked* source) : padded_(round_up(cols)), values_(kStreams * padded_) {
    for (int64_t f = 0; f < cols; ++f) at(kScale, f) = 1.f;
    if (source != nullptr) set_source(*source, cols);
  }
  int64_t padded() const { return padded_; }
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
    center_ = static_cast<int32_t>(std::nearbyint(std::min(std::max(first, 0.f), float(top))));
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

  int64_t padded_;
  Scratch<float> values_;
  int32_t center_ = 0;
  bool has_residual_ = false;
};

// The sums of one row, as the epilogue reads them: at(f) is sum of weight times (code - center), from
// which the residuals of the columns times `rest` are still to be taken; what multiplies the
// difference, besides the scales of the columns, is `factor`.

// Of integers, from which the integer part of the zero point is subtracted exactly.
struct IntegerSums {
  const int32_t* values;   // padded to whole vectors
  int32_t center_sum;      // center times the number of codes summed
  float rest;              // how many codes were summed
  float factor;

  F::vf at(int64_t f) const {
    return F::to_float(F::sub_int(F::load_int(values + f), F::set1_int(center_sum)));
  }
};

// Of floats that are centered already.
struct FloatSums {
  const float* values;     // padded to whole vectors
  float rest;              // the sum of the weights
  float factor;

  F::vf at(int64_t f) const { return F::load(values + f); }
};

// What a row of sums becomes, as floats.
template <typename Sums>
struct FinishedRow {
  Sums sums;
  const float* columns;  // the first block
  const float* addend;   // or null
  float addend_scale;
  bool has_residual, has_bias, relu;  // to branch on them takes less than to compute with zeros
  int64_t cols;

  QLR_ALWAYS_INLINE F::vf before_bias(int64_t f) const {
    const float* block = Columns::block(columns, f);
    F::vf y = sums.at(f);
    if (has_residual) y = F::fnma(Columns::load(block, Columns::kResidual), F::set1(sums.rest), y);
    y = F::mul(y, F::mul(Columns::load(block, Columns::kScale), F::set1(sums.factor)));
    if (addend == nullptr) return y;
    return F::fma(F::set1(addend_scale), load_columns(addend, f, cols), y);
  }
  QLR_ALWAYS_INLINE F::vf at(int64_t f) const {
    F::vf y = before_bias(f);
    if (has_bias) y = F::add(y, Columns::load(Columns::block(columns, f), Columns::kBias));
    return relu ? F::max(F::zero(), y) : y;  // in this order a NaN stays
  }
};

// Codes of untruncated quantizers without a division: code + 1/2 as a fixed-point number of kDigits
// binary digits is one fused multiplication, (y + bias) / scale + zero point + 1/2. What rounding makes
// of it, here and in the definition, amounts to less than four units of the last digit while zero
// point and bias over scale are below 2^bits: a number that is further from the next integer has the
// code of the definition, any other is in doubt. Clamps go to the middle between two integers.
class QuickCodes {
 public:
  static bool suit(const QlrQuantizer& q, const float* bias, int64_t cols) {
    bool small = !q.truncate;
    const double most = 1 << q.bits;
    for (int64_t f = 0; f < (q.axis == QLR_PER_COLUMN || bias != nullptr ? cols : 1); ++f) {
      const int64_t k = q.axis == QLR_PER_COLUMN ? f : 0;
      small &= std::fabs(q.zero[k]) <= most;
      if (bias != nullptr) small &= std::fabs(double{bias[f]} / q.scale[k]) <= most;
    }
    return small;
  }
  static void fill(const QlrQuantizer& q, const float* bias, bool relu, int64_t cols, Columns& to) {
    const double top = (1 << q.bits) - 1, unit = int64_t{1} << digits(q);
    for (int64_t f = 0; f < to.padded(); ++f) to.at(Columns::kOffset, f) = static_cast<float>(0.5 * unit);
    for (int64_t f = 0; f < cols; ++f) {
      const int64_t k = q.axis == QLR_PER_COLUMN ? f : 0;
      const double scale = q.scale[k], zero = q.zero[k];
      const double low = relu ? std::min(std::max(std::nearbyint(zero), 0.), top) : 0.;
      to.at(Columns::kSlope, f) = static_cast<float>(unit / scale);
      to.at(Columns::kOffset, f) =
          static_cast<float>((zero + (bias != nullptr ? bias[f] / scale : 0.) + 0.5) * unit);
      to.at(Columns::kLow, f) = static_cast<float>((low + 0.5) * unit);
    }
  }
  explicit QuickCodes(const QlrQuantizer& q)
      : high_(F::set1(static_cast<float>(((1 << q.bits) - 0.5) * (int64_t{1} << digits(q))))),
        shift_(F::set1_int(digits(q))), far_(F::set1_int((1 << digits(q)) - 2 * kDoubt)) {}

  // `doubt` gets a zero where there is some.
  QLR_ALWAYS_INLINE F::vi code(F::vf y, const float* block, F::vi& doubt) const {
    F::vf t = F::fma(y, Columns::load(block, Columns::kSlope), Columns::load(block, Columns::kOffset));
    t = F::min(F::max(t, Columns::load(block, Columns::kLow)), high_);
    const F::vi number = F::to_int(t);
    doubt = F::min_int(doubt, F::both_int(F::add_int(number, F::set1_int(kDoubt)), far_));
    return F::shift_right(number, shift_);
  }

 private:
  static constexpr int32_t kDoubt = 4;
  // The number stays below 2^22, where floats still count quarters.
  static int digits(const QlrQuantizer& q) { return 22 - q.bits; }

  F::vf high_;
  F::vi shift_, far_;
};

class Emitter {
 public:
  Emitter(int64_t cols, int64_t rows, const QlrPacked* source, const QlrEpilogue& epilogue)
      : cols_(cols), rows_(rows), epilogue_(epilogue), columns_(cols, source),
        layout_(cols, epilogue.quantizer ? storage_bits(epilogue.quantizer->bits) : 8),
        coder_(epilogue.quantizer ? *epilogue.quantizer : kNoQuantizer),
        quick_codes_(epilogue.quantizer ? *epilogue.quantizer : kNoQuantizer),
        streams_(epilogue.out != nullptr && rows * cols >= kStreamed && cols % F::W == 0 &&
                 reinterpret_cast<uintptr_t>(epilogue.out) % (F::W * sizeof(float)) == 0) {
    if (epilogue.quantizer != nullptr) set_quantizer(*epilogue.quantizer);
    else set_bias();
  }
  // To be called when a thread has written its last row.
  void finish() const {
    if (streams_) F::fence();
  }
  int64_t padded() const { return columns_.padded(); }
  int32_t center() const { return columns_.center(); }
  // Whether sums need a `rest`.
  bool has_residual() const { return columns_.has_residual(); }
  float row_factor(int64_t row, int64_t degree) const {
    float factor = epilogue_.row_scale != nullptr ? epilogue_.row_scale[row] : 1.f;
    if (epilogue_.mean) factor /= static_cast<float>(std::max<int64_t>(degree, 1));
    return factor;
  }

  template <typename Sums>
  void row(int64_t i, const Sums& sums) const {
    prefetch(std::min(i + kRowsAhead, rows_ - 1));
    if (epilogue_.out != nullptr) return float_row(i, sums);
    if (counts_) return layout_.bits == 1 ? counted_row<1>(i, sums) : counted_row<2>(i, sums);
    if (quick_ && quick_row(i, sums)) return;
    return fast_ ? coded_row<true>(i, sums) : coded_row<false>(i, sums);
  }

 private:
  static constexpr float kOne = 1.f, kNothing = 0.f;
  static constexpr QlrQuantizer kNoQuantizer{&kOne, &kNothing, QLR_PER_TENSOR, 8, 0, 0.f};
  static constexpr int64_t kRowsAhead = 12;
  // Floats that would push the sources out of any cache, to be read again later than that.
  static constexpr int64_t kStreamed = 1 << 22;

  void set_bias() {
    for (int64_t f = 0; f < cols_ && epilogue_.bias != nullptr; ++f)
      columns_.at(Columns::kBias, f) = epilogue_.bias[f];
  }
  void set_quantizer(const QlrQuantizer& q) {
    const Affines affines(q, 1, cols_);
    fast_ = affines.fast();
    counts_ = thresholds_suit(q, affines);
    if (counts_) {
      for (int64_t f = 0; f < padded(); ++f)
        for (int n = 0; n < 3; ++n) columns_.at(Columns::kThresholds + n, f) = std::nanf("");
      const float floor = epilogue_.relu ? 0.f : -INFINITY;
      find_thresholds(q, epilogue_.bias, floor, cols_, [&](int64_t f, int n, float threshold) {
        columns_.at(Columns::kThresholds + n - 1, f) = threshold;
      });
      return;
    }
    set_bias();
    for (int64_t f = 0; f < padded(); ++f) {
      const int64_t k = q.axis == QLR_PER_COLUMN && f < cols_ ? f : 0;
      columns_.at(Columns::kStep, f) = q.scale[k];
      columns_.at(Columns::kInverse, f) = 1.f / q.scale[k];
      columns_.at(Columns::kZero, f) = q.zero[k];
    }
    quick_ = fast_ && QuickCodes::suit(q, epilogue_.bias, cols_);
    if (quick_) QuickCodes::fill(q, epilogue_.bias, epilogue_.relu != 0, cols_, columns_);
  }
  // Rows are read and written in order, but the gathers in between hide that from the hardware.
  // Stores that miss the caches would soon block those behind them.
  void prefetch(int64_t i) const {
    if (epilogue_.addend != nullptr) {
      const float* p = epilogue_.addend + i * cols_;
      for (int64_t f = 0; f < cols_; f += 16) prefetch_line(p + f);
    }
    if (epilogue_.packed != nullptr) {
      uint8_t* p = epilogue_.packed + i * layout_.stride;
      for (int64_t b = 0; b < layout_.stride; b += 64) prefetch_to_write(p + b);
    } else if (!streams_) {
      float* p = epilogue_.out + i * cols_;
      for (int64_t f = 0; f < cols_; f += 16) prefetch_to_write(p + f);
    }
  }
  template <typename Sums>
  FinishedRow<Sums> finished(int64_t i, const Sums& sums) const {
    return {sums, columns_.block(0),
            epilogue_.addend != nullptr ? epilogue_.addend + i * cols_ : nullptr,
            epilogue_.addend_scale, columns_.has_residual(), epilogue_.bias != nullptr,
            epilogue_.relu != 0, cols_};
  }
  // The lambdas hold copies, which the compiler can keep in registers.
  template <int BITS, typename Sums>
  QLR_NEVER_INLINE void counted_row(int64_t i, const Sums& sums) const {
    const auto value_at = [row = finished(i, sums)](int64_t f) QLR_ALWAYS_INLINE {
      return row.before_bias(f);
    };
    const auto thresholds_at = [first = columns_.block(0)](int64_t f) QLR_ALWAYS_INLINE {
      return Columns::block(first, f) + Columns::kThresholds * F::W;
    };
    pack_row_by<BITS>(value_at, thresholds_at, layout_, epilogue_.packed + i * layout_.stride);
  }
  // Whether the codes are beyond doubt.
  template <typename Sums>
  QLR_NEVER_INLINE bool quick_row(int64_t i, const Sums& sums) const {
    F::vi doubt = F::set1_int(1);
    const auto code_at = [row = finished(i, sums), coder = quick_codes_, &doubt](int64_t f)
                             QLR_ALWAYS_INLINE {
      return coder.code(row.before_bias(f), Columns::block(row.columns, f), doubt);
    };
    pack_row_of(code_at, layout_, epilogue_.packed + i * layout_.stride);
    return !F::any_zero(doubt);
  }
  template <bool FAST, typename Sums>
  QLR_NEVER_INLINE void coded_row(int64_t i, const Sums& sums) const {
    const auto code_at = [row = finished(i, sums), coder = coder_](int64_t f) QLR_ALWAYS_INLINE {
      const float* block = Columns::block(row.columns, f);
      const Affine to{{Columns::load(block, Columns::kStep), Columns::load(block, Columns::kInverse)},
                      Columns::load(block, Columns::kZero)};
      return F::to_int(coder.template code<FAST>(row.at(f), to));
    };
    pack_row_of(code_at, layout_, epilogue_.packed + i * layout_.stride);
  }
  template <typename Sums>
  QLR_NEVER_INLINE void float_row(int64_t i, const Sums& sums) const {
    const FinishedRow<Sums> row = finished(i, sums);
    float* out = epilogue_.out + i * cols_;
    int64_t f = 0;
    if (streams_) {
      for (; f < cols_; f += F::W) F::stream(out + f, row.at(f));
      return;
    }
    for (; f + F::W <= cols_; f += F::W) F::store(out + f, row.at(f));
    if (f < cols_) {
      alignas(64) float tail[F::W];
      F::store(tail, row.at(f));
      std::memcpy(out + f, tail, (cols_ - f) * sizeof(float));
    }
  }

  int64_t cols_, rows_;
  const QlrEpilogue& epilogue_;
  Columns columns_;
  Layout layout_;
  Coder coder_;
  QuickCodes quick_codes_;
  bool streams_, fast_ = false, counts_ = false, quick_ = false;
};
