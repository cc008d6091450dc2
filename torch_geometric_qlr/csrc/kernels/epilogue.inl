// A row of sums to a row of the result: affine map, mean, row scale, addend, bias, relu, in this order,
// and then either floats or codes, which are quantized and packed here so that they never exist as
// floats in memory. Every step after the affine map is rounded on its own, so that the result is bit
// for bit that of the same steps taken one after the other on whole tensors.

#include "codes.inl"
#include "columns.inl"
#include "quick_codes.inl"
#include "thresholds.inl"

// The sums of one row, as the epilogue reads them: at(f) is sum of weight times (code - center), from
// which the residuals of the columns times `rest` are still to be taken. What multiplies the
// difference, besides the scales of the columns, is scale_of(column scale). Where no mean divides,
// simple_at(f) has the residuals taken off, by arithmetic with zeros where there are none.

// Of integers, from which the integer part of the zero point is subtracted exactly.
struct IntegerSums {
  const int32_t* values;  // padded to whole vectors
  int32_t center_sum;     // center times the number of codes summed
  float rest;             // how many codes were summed

  static F::vf scale_of(F::vf column_scale) { return column_scale; }
  QLR_ALWAYS_INLINE F::vf at(int64_t f) const {
    return F::to_float(F::sub_int(F::load_int(values + f), F::set1_int(center_sum)));
  }
  QLR_ALWAYS_INLINE F::vf simple_at(int64_t f, const float* block) const {
    return F::fnma(Columns::load(block, Columns::kResidual), F::set1(rest), at(f));
  }
};

// Of floats that are centered already.
struct FloatSums {
  const float* values;  // padded to whole vectors
  float rest;           // the sum of the weights

  static F::vf scale_of(F::vf column_scale) { return column_scale; }
  QLR_ALWAYS_INLINE F::vf at(int64_t f) const { return F::load(values + f); }
  QLR_ALWAYS_INLINE F::vf simple_at(int64_t f, const float* block) const {
    return F::fnma(Columns::load(block, Columns::kResidual), F::set1(rest), at(f));
  }
};

// What a row of sums becomes, as floats. SIMPLE: nearly without branches, for sums that no mean
// divides; zeros and ones stand for what is missing.
template <typename Sums, bool SIMPLE>
struct FinishedRow {
  Sums sums;
  const float* columns;  // the first block
  const float* addend;   // or null
  float addend_scale, row_scale, divisor;
  float floor;  // zero for a relu, else minus infinity
  bool has_row_scale, divides, has_residual, has_bias, relu;
  int64_t cols;

  QLR_ALWAYS_INLINE F::vf before_bias(int64_t f) const {
    const float* block = Columns::block(columns, f);
    if constexpr (SIMPLE) {
      const F::vf y =
          F::mul(sums.simple_at(f, block), sums.scale_of(Columns::load(block, Columns::kScale)));
      const F::vf scaled = F::mul(y, F::set1(row_scale));
      return addend == nullptr ? scaled : plus_addend(scaled, f);
    }
    F::vf y = sums.at(f);
    if (has_residual) y = F::fnma(Columns::load(block, Columns::kResidual), F::set1(sums.rest), y);
    y = F::mul(y, sums.scale_of(Columns::load(block, Columns::kScale)));
    if (divides) y = F::div(y, F::set1(divisor));
    if (has_row_scale) y = F::mul(y, F::set1(row_scale));
    return addend == nullptr ? y : plus_addend(y, f);
  }
  QLR_ALWAYS_INLINE F::vf plus_addend(F::vf y, int64_t f) const {
    return F::add(y, F::mul(F::set1(addend_scale), load_columns(addend, f, cols)));
  }
  QLR_ALWAYS_INLINE F::vf at(int64_t f) const {
    F::vf y = before_bias(f);
    if constexpr (SIMPLE) {
      y = F::add(y, Columns::load(Columns::block(columns, f), Columns::kBias));
      return F::max(F::set1(floor), y);  // in this order a NaN stays
    }
    if (has_bias) y = F::add(y, Columns::load(Columns::block(columns, f), Columns::kBias));
    return relu ? F::max(F::zero(), y) : y;
  }
};

class Emitter {
 public:
  Emitter(int64_t cols, int64_t rows, const QlrPacked* source, const QlrEpilogue& epilogue)
      : cols_(cols), rows_(rows), epilogue_(epilogue), columns_(cols, source),
        layout_(cols, epilogue.quantizer ? storage_bits(epilogue.quantizer->bits) : 8),
        coder_(epilogue.quantizer ? *epilogue.quantizer : kNoQuantizer),
        quick_codes_(epilogue.quantizer ? *epilogue.quantizer : kNoQuantizer),
        streams_(epilogue.quantizer == nullptr && rows * cols >= kStreamed && cols % F::W == 0 &&
                 reinterpret_cast<uintptr_t>(epilogue.out) % (F::W * sizeof(float)) == 0) {
    if (epilogue.quantizer != nullptr) set_quantizer(*epilogue.quantizer);
    else set_bias();
    simple_ = !epilogue.mean;
    far_ = rows * cols > kNear;
  }
  // To be called when a thread has written its last row.
  void finish() const {
    if (streams_) F::fence();
  }
  // Of a call whose loop over the rows ended with `status`.
  int32_t status(int32_t status) const {
    return status == QLR_OK && !finite_.load(std::memory_order_relaxed) ? QLR_NOT_FINITE : status;
  }
  // Room for the sums of a row, in any layout a kernel may write.
  int64_t padded() const { return round_up(cols_); }
  int32_t center() const { return columns_.center(); }
  // Whether sums need a `rest`.
  bool has_residual() const { return columns_.has_residual(); }

  // `degree`: how many were summed, for the mean.
  template <typename Sums>
  void row(int64_t i, const Sums& sums, int64_t degree = 1) const {
    if (far_) prefetch(std::min(i + kRowsAhead, rows_ - 1));
    if (simple_) finished_row<true>(i, sums, degree);
    else finished_row<false>(i, sums, degree);
  }

 private:
  static constexpr float kOne = 1.f, kNothing = 0.f;
  static constexpr QlrQuantizer kNoQuantizer{&kOne, &kNothing, QLR_PER_TENSOR, 8, 0, 0.f};
  static constexpr int64_t kRowsAhead = 12;
  // Floats that would push the sources out of any cache, to be read again later than that.
  static constexpr int64_t kStreamed = 1 << 22;
  // Of results that lie in a cache anyway nothing needs to be asked for.
  static constexpr int64_t kNear = 1 << 16;

  template <bool SIMPLE, typename Sums>
  void finished_row(int64_t i, const Sums& sums, int64_t degree) const {
    if (epilogue_.quantizer == nullptr) return float_row<SIMPLE>(i, sums, degree);
    if (counts_ && layout_.bits == 1) return counted_row<SIMPLE, 1>(i, sums, degree);
    if (counts_) return counted_row<SIMPLE, 2>(i, sums, degree);
    if (quick_ && quick_row<SIMPLE>(i, sums, degree)) return;
    return fast_ ? coded_row<true>(i, sums, degree) : coded_row<false>(i, sums, degree);
  }
  void set_bias() {
    for (int64_t f = 0; f < cols_ && epilogue_.bias != nullptr; ++f)
      columns_.at(Columns::kBias, f) = epilogue_.bias[f];
  }
  void set_quantizer(const QlrQuantizer& q) {
    fast_ = divides_fast(q, q.axis == QLR_PER_COLUMN ? cols_ : 1);
    counts_ = fast_ && cols_ > 0 && thresholds_suit(q) && small_bias();
    if (counts_) {
      for (int64_t f = 0; f < columns_.width(); ++f)
        for (int n = 0; n < 3; ++n) columns_.at(Columns::kThresholds + n, f) = std::nanf("");
      const float floor = epilogue_.relu ? 0.f : -INFINITY;
      find_thresholds(q, epilogue_.bias, floor, cols_, [&](int64_t f, int n, float threshold) {
        columns_.at(Columns::kThresholds + n - 1, f) = threshold;
      });
      return;
    }
    set_bias();
    for (int64_t f = 0; f < columns_.width(); ++f) {  // there are none without columns
      const int64_t k = q.axis == QLR_PER_COLUMN && f < cols_ ? f : 0;
      columns_.at(Columns::kStep, f) = q.scale[k];
      columns_.at(Columns::kInverse, f) = 1.f / q.scale[k];
      columns_.at(Columns::kZero, f) = q.zero[k];
    }
    quick_ = fast_ && QuickCodes::suit(q, epilogue_.bias, cols_);
    if (quick_) QuickCodes::fill(q, epilogue_.bias, epilogue_.relu != 0, cols_, columns_);
  }
  // Whether no bias is NaN or makes a finite value infinite.
  bool small_bias() const {
    bool small = true;
    for (int64_t f = 0; f < cols_ && epilogue_.bias != nullptr; ++f)
      small &= std::fabs(epilogue_.bias[f]) <= 0x1p100f;
    return small;
  }
  // Rows are read and written in order, but the gathers in between hide that from the hardware.
  // Stores that miss the caches would soon block those behind them.
  void prefetch(int64_t i) const {
    if (epilogue_.addend != nullptr) {
      const float* p = epilogue_.addend + i * cols_;
      for (int64_t f = 0; f < cols_; f += 16) prefetch_line(p + f);
    }
    if (epilogue_.quantizer != nullptr) {
      uint8_t* p = epilogue_.packed + i * layout_.stride;
      for (int64_t b = 0; b < layout_.stride; b += 64) prefetch_to_write(p + b);
    } else if (!streams_) {
      float* p = epilogue_.out + i * cols_;
      for (int64_t f = 0; f < cols_; f += 16) prefetch_to_write(p + f);
    }
  }
  template <bool SIMPLE, typename Sums>
  FinishedRow<Sums, SIMPLE> finished(int64_t i, const Sums& sums, int64_t degree) const {
    return {sums,
            columns_.block(0),
            epilogue_.addend != nullptr ? epilogue_.addend + i * cols_ : nullptr,
            epilogue_.addend_scale,
            epilogue_.row_scale != nullptr ? epilogue_.row_scale[i] : 1.f,
            static_cast<float>(degree),
            epilogue_.relu != 0 ? 0.f : -INFINITY,
            epilogue_.row_scale != nullptr,
            epilogue_.mean != 0 && degree > 1,
            columns_.has_residual(),
            epilogue_.bias != nullptr && !counts_,  // a bias is in the thresholds
            epilogue_.relu != 0,
            cols_};
  }
  // A row in which something looked like NaN or infinite: in its columns, and after the relu?
  template <typename Sums>
  QLR_NEVER_INLINE void look_closely(FinishedRow<Sums, false> row) const {
    FiniteCheck check{F::zero()};
    alignas(64) float values[F::W];
    for (int64_t f = 0; f < cols_; f += F::W) {
      F::store(values, row.at(f));
      check.see(load_columns(values, 0, cols_ - f));
    }
    if (!check.holds()) finite_.store(false, std::memory_order_relaxed);
  }
  // The lambdas hold copies, which the compiler can keep in registers.
  template <bool SIMPLE, int BITS, typename Sums>
  QLR_NEVER_INLINE void counted_row(int64_t i, const Sums& sums, int64_t degree) const {
    FiniteCheck check{F::zero()};
    const auto value_at = [row = finished<SIMPLE>(i, sums, degree), &check](int64_t f)
                              QLR_ALWAYS_INLINE {
      return check.see(row.before_bias(f));
    };
    const auto thresholds_at = [first = columns_.block(0)](int64_t f) QLR_ALWAYS_INLINE {
      return Columns::block(first, f) + Columns::kThresholds * F::W;
    };
    pack_row_by<BITS>(value_at, thresholds_at, layout_, epilogue_.packed + i * layout_.stride);
    if (!check.holds()) look_closely(finished<false>(i, sums, degree));
  }
  // Whether the codes are beyond doubt.
  template <bool SIMPLE, typename Sums>
  QLR_NEVER_INLINE bool quick_row(int64_t i, const Sums& sums, int64_t degree) const {
    F::vi doubt = F::set1_int(1);
    FiniteCheck check{F::zero()};
    const auto code_at = [row = finished<SIMPLE>(i, sums, degree), coder = quick_codes_, &doubt,
                          &check](int64_t f) QLR_ALWAYS_INLINE {
      const F::vf y = check.see(row.before_bias(f));
      return coder.code(y, Columns::block(row.columns, f), doubt);
    };
    pack_row_of(code_at, layout_, epilogue_.packed + i * layout_.stride);
    return check.holds() && !F::any_zero(doubt);
  }
  template <bool FAST, typename Sums>
  QLR_NEVER_INLINE void coded_row(int64_t i, const Sums& sums, int64_t degree) const {
    FiniteCheck check{F::zero()};
    const auto code_at = [row = finished<false>(i, sums, degree), coder = coder_, &check](int64_t f)
                             QLR_ALWAYS_INLINE {
      const float* block = Columns::block(row.columns, f);
      const Affine to{
          {Columns::load(block, Columns::kStep), Columns::load(block, Columns::kInverse)},
          Columns::load(block, Columns::kZero)};
      return F::to_int(coder.template code<FAST>(check.see(row.at(f)), to));
    };
    pack_row_of(code_at, layout_, epilogue_.packed + i * layout_.stride);
    if (!check.holds()) look_closely(finished<false>(i, sums, degree));
  }
  template <bool SIMPLE, typename Sums>
  QLR_NEVER_INLINE void float_row(int64_t i, const Sums& sums, int64_t degree) const {
    const FinishedRow<Sums, SIMPLE> row = finished<SIMPLE>(i, sums, degree);
    float* out = epilogue_.out + i * cols_;
    const int64_t cols = row.cols;
    int64_t f = 0;
    if (streams_) {
      for (; f < cols; f += F::W) F::stream(out + f, row.at(f));
      return;
    }
    for (; f + F::W <= cols; f += F::W) F::store(out + f, row.at(f));
    if (f < cols) {
      alignas(64) float tail[F::W];
      F::store(tail, row.at(f));
      std::memcpy(out + f, tail, (cols - f) * sizeof(float));
    }
  }

  int64_t cols_, rows_;
  const QlrEpilogue& epilogue_;
  Columns columns_;
  Layout layout_;
  Coder coder_;
  QuickCodes quick_codes_;
  bool streams_, simple_ = false, far_ = false;
  bool fast_ = false, counts_ = false, quick_ = false;
  mutable std::atomic<bool> finite_{true};  // what was quantized so far, by all threads
};
