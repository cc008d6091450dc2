// Codes of untruncated quantizers without a division.
//
// code + 1/2, as a fixed-point number of 22 - bits binary digits, is one fused multiplication:
// (y + bias) / scale + zero point + 1/2. While zero point and bias over scale are below 2^bits, all
// that rounding does to it, here and in the definition, is less than four units of the last digit. A
// number that is further from the next integer has the code of the definition; any other is in
// doubt. Clamps go to the middle between two integers.

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
    for (int64_t f = cols; f < to.width(); ++f)  // nothing there is in doubt
      to.at(Columns::kOffset, f) = static_cast<float>(0.5 * unit);
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
      : unit_(F::set1(static_cast<float>(int64_t{1} << digits(q)))),
        low_(F::mul(F::set1(0.5f), unit_)),
        high_(F::set1(static_cast<float>(((1 << q.bits) - 0.5) * (int64_t{1} << digits(q))))),
        shift_(F::set1_int(digits(q))), far_(F::set1_int((1 << digits(q)) - 2 * kDoubt)) {}

  // `doubt` gets a zero where there is some.
  QLR_ALWAYS_INLINE F::vi code(F::vf y, const float* block, F::vi& doubt) const {
    return code(y, Columns::load(block, Columns::kSlope), Columns::load(block, Columns::kOffset),
                Columns::load(block, Columns::kLow), doubt);
  }
  // Of values by themselves.
  QLR_ALWAYS_INLINE F::vi code(F::vf y, const Affine& a, F::vi& doubt) const {
    const F::vf offset = F::mul(F::add(a.zero, F::set1(0.5f)), unit_);
    return code(y, F::mul(unit_, a.scale.inverse), offset, low_, doubt);
  }

 private:
  static constexpr int32_t kDoubt = 4;
  // The number stays below 2^22, where floats still count quarters.
  static int digits(const QlrQuantizer& q) { return 22 - q.bits; }

  QLR_ALWAYS_INLINE F::vi code(F::vf y, F::vf slope, F::vf offset, F::vf low, F::vi& doubt) const {
    const F::vf t = F::min(F::max(F::fma(y, slope, offset), low), high_);
    const F::vi number = F::to_int(t);
    doubt = F::min_int(doubt, F::both_int(F::add_int(number, F::set1_int(kDoubt)), far_));
    return F::shift_right(number, shift_);
  }

  F::vf unit_, low_, high_;
  F::vi shift_, far_;
};
