// Codes of one or two bits without a quotient. Quantization is monotone, so a code is the number of
// thresholds that its value reaches; they are found once per call, from the definition itself.

// The smallest float that is quantized to a wanted code or above, for F::W columns at once. What is
// quantized is max(floor, value + bias). Floats are numbered in their order and bisected.
class ThresholdSearch {
 public:
  explicit ThresholdSearch(const QlrQuantizer& q, float floor) : q_(q), coder_(q), floor_(floor) {}

  // Column `f` of the result, whose bias this is, in lane i.
  void aim(int64_t i, int64_t f, float bias, int32_t wanted) {
    const int64_t k = q_.axis == QLR_PER_COLUMN ? f : 0;
    scale_[i] = q_.scale[k];
    zero_[i] = q_.zero[k];
    bias_[i] = bias;
    wanted_[i] = wanted;
    low_[i] = -kInfinity - 2;  // below minus infinity
    high_[i] = kInfinity + 1;  // a NaN, which no value reaches
  }
  void run() {
    int64_t trial[F::W];
    // First to both sides of where arithmetic without rounding has the threshold.
    for (int side = -1; side <= 1; side += 2) {
      for (int i = 0; i < F::W; ++i) trial[i] = near(i, side);
      judge(trial);
    }
    for (bool done = false; !done;) {
      done = true;
      for (int i = 0; i < F::W; ++i) {
        trial[i] = (low_[i] + high_[i]) >> 1;
        done &= high_[i] - low_[i] < 2;
      }
      if (!done) judge(trial);
    }
  }
  float found(int64_t i) const { return value_of(high_[i]); }

 private:
  static constexpr int64_t kInfinity = 0x7f800000;

  static float value_of(int64_t number) {
    const uint32_t bits = static_cast<uint32_t>(number < 0 ? 0x7fffffff - number : number);
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  static int64_t number_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits >> 31 ? int64_t{0x7fffffff} - bits : bits;
  }
  int64_t near(int64_t i, int side) const {
    double raw = wanted_[i] - 0.5;
    if (q_.truncate) {
      const double width = 255.0 / ((1 << q_.bits) - 1);
      raw = std::ceil(width * raw - q_.skew) - 0.5;
    }
    const double offset = (raw - zero_[i]) * scale_[i];
    const double apart = 0x1p-20 * (std::fabs(offset) + std::fabs(bias_[i]));
    const float value = static_cast<float>(offset - bias_[i] + side * apart);
    return std::isfinite(value) ? number_of(value) : 0;
  }
  void judge(const int64_t* trial) {
    alignas(64) float value[F::W];
    alignas(64) uint8_t code[F::W];
    for (int i = 0; i < F::W; ++i) value[i] = value_of(trial[i]);
    const Affine affine{{F::load(scale_), F::zero()}, F::load(zero_)};
    const F::vf y = F::max(F::set1(floor_), F::add(F::load(value), F::load(bias_)));
    F::store_u8(code, F::to_int(coder_.template code<false>(y, affine)));
    for (int i = 0; i < F::W; ++i) {
      if (high_[i] - low_[i] < 2) continue;  // found, and what lies below may be no number
      if (code[i] >= wanted_[i]) high_[i] = std::min(high_[i], trial[i]);
      else low_[i] = std::max(low_[i], trial[i]);
    }
  }

  const QlrQuantizer& q_;
  Coder coder_;
  float floor_;
  alignas(64) float scale_[F::W];
  alignas(64) float zero_[F::W];
  alignas(64) float bias_[F::W];
  int32_t wanted_[F::W];
  int64_t low_[F::W], high_[F::W];  // falls short, suffices
};

inline bool thresholds_suit(const QlrQuantizer& q) { return q.bits <= 2 && q.axis != QLR_PER_ROW; }

// put(f, n, threshold) for every column f and code n, from 1 on. `bias` may be null.
template <typename Put>
inline void find_thresholds(const QlrQuantizer& q, const float* bias, float floor, int64_t cols,
                            const Put& put) {
  const int32_t codes = (1 << q.bits) - 1;
  const bool alike = q.axis != QLR_PER_COLUMN && bias == nullptr;  // all columns
  const int64_t count = codes * (alike ? std::min<int64_t>(cols, 1) : cols);
  for (int64_t first = 0; first < count; first += F::W) {
    ThresholdSearch search(q, floor);
    for (int64_t i = 0; i < F::W; ++i) {
      const int64_t s = std::min(first + i, count - 1), f = s / codes;
      search.aim(i, f, bias != nullptr ? bias[f] : 0.f, static_cast<int32_t>(s % codes + 1));
    }
    search.run();
    for (int64_t i = 0; i < F::W && first + i < count; ++i) {
      const int64_t s = first + i, f = s / codes;
      const int n = static_cast<int>(s % codes + 1);
      for (int64_t g = f; g < (alike ? cols : f + 1); ++g) put(g, n, search.found(i));
    }
  }
}

// Counts and packs a row in one go. value_at(f) gives the values of the columns from f on, and
// thresholds_at(f) those of code 1, of which all higher follow; past the last column they are NaN.
template <int BITS, int UNIT, typename ValueAt, typename ThresholdsAt, int... K>
QLR_ALWAYS_INLINE inline void count_unit(const ValueAt& value_at, const ThresholdsAt& thresholds_at,
                                         int64_t begin, int64_t cols, uint8_t* packed,
                                         std::integer_sequence<int, K...>) {
  for (int j = 0; j < UNIT; j += F::W) {
    F::vb bytes = F::no_bytes();
    const auto field = [&](auto k) QLR_ALWAYS_INLINE {
      const int64_t f = begin + k * UNIT + j;
      if (f < cols) bytes = F::template add_reached<BITS, k>(bytes, value_at(f), thresholds_at(f));
    };
    (field(std::integral_constant<int, K>()), ...);
    F::store_bytes(packed + j, bytes);
  }
}

template <int BITS, int UNIT, typename ValueAt, typename ThresholdsAt>
QLR_ALWAYS_INLINE inline void count_units(const ValueAt& value_at,
                                          const ThresholdsAt& thresholds_at, const Layout& layout,
                                          uint8_t* packed) {
  constexpr int kFields = 8 / BITS;
  for (int64_t begin = 0; begin < layout.cols; begin += UNIT * kFields, packed += UNIT)
    count_unit<BITS, UNIT>(value_at, thresholds_at, begin, layout.cols, packed,
                           std::make_integer_sequence<int, kFields>());
}

template <int BITS, typename ValueAt, typename ThresholdsAt>
QLR_ALWAYS_INLINE inline void pack_row_by(const ValueAt& value_at,
                                          const ThresholdsAt& thresholds_at, const Layout& layout,
                                          uint8_t* packed) {
  if (layout.unit == 16) count_units<BITS, 16>(value_at, thresholds_at, layout, packed);
  else count_units<BITS, 32>(value_at, thresholds_at, layout, packed);
}
