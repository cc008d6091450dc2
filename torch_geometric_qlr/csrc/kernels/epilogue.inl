// A row of sums to a row of the result: affine map, bias, addend, relu, and then either floats or
// codes, which are quantized and packed here so that they never exist as floats in memory.

// Room for the columns of a row, in any layout a kernel may write.
inline int64_t round_up(int64_t cols) { return (cols + 1023) / 256 * 256; }

// What a column of sums needs, padded to whole vectors and computed once per call.
struct Columns {
  Scratch<float> scale, residual, bias;
  bool has_residual = false, has_bias;
  int32_t center = 0;

  // `center` is an integer near the zero point. It is subtracted from the integer sums, where
  // nothing is lost; only the `residual` zero - center meets floating point.
  Columns(int64_t padded, const QlrPacked* source, int64_t cols, const QlrEpilogue& epilogue)
      : scale(padded), residual(padded), bias(padded), has_bias(epilogue.bias != nullptr) {
    for (int64_t f = 0; f < cols; ++f) {
      scale[f] = 1.f;
      if (has_bias) bias[f] = epilogue.bias[f];
    }
    if (source != nullptr) set_source(*source, cols);
  }

 private:
  void set_source(const QlrPacked& source, int64_t cols) {
    const int32_t top = (1 << source.bits) - 1;
    const float first = source.axis == QLR_PER_TENSOR ? source.zero[0] : 0.5f * (top + 1);
    center = static_cast<int32_t>(std::nearbyint(std::min(std::max(first, 0.f), float(top))));
    if (source.axis == QLR_PER_ROW) return;  // goes with the weights of the edges
    for (int64_t f = 0; f < cols; ++f) {
      const int64_t k = source.axis == QLR_PER_COLUMN ? f : 0;
      scale[f] = source.scale[k];
      residual[f] = source.zero[k] - static_cast<float>(center);
      has_residual |= residual[f] != 0.f;
    }
  }
};

// x / by, rounded as a division rounds it, for a fraction of its time. With the rounded inverse and
// two steps of correction by fused multiplications the quotient is the correctly rounded one
// (Markstein 1990), while nothing overflows or gets denormal: hence the limits.
struct Divisor {
  F::vf by, inverse;

  // The scale of a row of zeros is within them.
  static bool suits(float by) { return by >= 0x1p-80f && by <= 0x1p20f; }

  template <bool FAST>
  QLR_ALWAYS_INLINE F::vf operator()(F::vf x) const {
    if constexpr (!FAST) return F::div(x, by);
    // What lies beyond is beyond any code as well. In this order a NaN stays.
    x = F::min(F::set1(0x1p40f), F::max(F::set1(-0x1p40f), x));
    F::vf q = F::mul(x, inverse);
    q = F::fma(F::fnma(q, by, x), inverse, q);
    return F::fma(F::fnma(q, by, x), inverse, q);
  }
};

// How the values of a vector become codes.
struct Affine {
  Divisor scale;
  F::vf zero;
};

// The same for columns, padded to whole vectors.
struct AffineColumns {
  const float *scale, *inverse, *zero;

  Affine at(int64_t f) const {
    return {{F::load(scale + f), F::load(inverse + f)}, F::load(zero + f)};
  }
};

// The parameters of a quantizer, prepared once per call.
class Affines {
 public:
  Affines(const QlrQuantizer& q, int64_t rows, int64_t cols)
      : q_(q), by_row_(q.axis == QLR_PER_ROW), padded_(by_row_ ? 0 : round_up(cols)),
        values_(3 * padded_) {
    const int64_t count = by_row_ ? rows : q.axis == QLR_PER_COLUMN ? cols : 1;
    fast_ = F::kFused;
    for (int64_t k = 0; k < count; ++k)
      fast_ &= Divisor::suits(q.scale[k]) && std::fabs(q.zero[k]) <= 0x1p16f;
    for (int64_t f = 0; f < padded_; ++f) {
      const int64_t k = q.axis == QLR_PER_COLUMN && f < cols ? f : 0;
      values_[f] = q.scale[k];
      values_[padded_ + f] = 1.f / q.scale[k];
      values_[2 * padded_ + f] = q.zero[k];
    }
  }
  // Whether all scales suit a Divisor, and no zero point brings back what lies beyond its limits.
  bool fast() const { return fast_; }
  AffineColumns columns() const {
    const float* p = values_.data();
    return {p, p + padded_, p + 2 * padded_};
  }
  // Of a row, where rows decide.
  Affine row(int64_t i) const {
    if (!by_row_) return Affine{};
    return {{F::set1(q_.scale[i]), F::set1(1.f / q_.scale[i])}, F::set1(q_.zero[i])};
  }
  Affine at(const Affine& row, int64_t f) const { return by_row_ ? row : columns().at(f); }

 private:
  const QlrQuantizer& q_;
  bool by_row_, fast_;
  int64_t padded_;
  Scratch<float> values_;  // scales, inverses, zero points of the columns
};

// Values to codes, a vector at a time. Division and addition stay apart, as in the definition.
// FAST: see Affines::fast.
struct Coder {
  F::vf top, raw_top, skew;
  Divisor step;
  bool truncate;

  explicit Coder(const QlrQuantizer& q) {
    const float width = static_cast<float>(255.0 / ((1 << q.bits) - 1));
    top = F::set1(static_cast<float>((1 << q.bits) - 1));
    raw_top = q.truncate ? F::set1(255.f) : top;
    step = {F::set1(width), F::set1(1.f / width)};
    skew = F::set1(q.skew);
    truncate = q.truncate != 0;
  }
  F::vf clamp(F::vf a, F::vf high) const { return F::min(F::max(a, F::zero()), high); }
  template <bool FAST> QLR_ALWAYS_INLINE F::vf quotient(F::vf x, const Affine& a) const {
    return F::add(a.scale.template operator()<FAST>(x), a.zero);
  }
  // The rounded quotient before any clamp.
  template <bool FAST> QLR_ALWAYS_INLINE F::vf raw(F::vf x, const Affine& a) const {
    return F::round(quotient<FAST>(x, a));
  }
  // The truncated code before its clamp.
  template <bool FAST> QLR_ALWAYS_INLINE F::vf cut(F::vf raw_code) const {
    return F::round(step.template operator()<FAST>(F::add(clamp(raw_code, raw_top), skew)));
  }
  template <bool FAST> QLR_ALWAYS_INLINE F::vf code(F::vf x, const Affine& a) const {
    // Rounding comes with the conversion to integers: between clamps that are integers it commutes.
    if (!truncate) return clamp(quotient<FAST>(x, a), top);
    return clamp(cut<FAST>(raw<FAST>(x, a)), top);
  }
};

// Codes in the order of the columns to the packed bytes of a unit.
template <int BITS>
inline void pack_unit(const uint8_t* codes, int unit, uint8_t* packed) {
  for (int j = 0; j < unit; j += F::W) {
    F::vb bytes = F::load_bytes(codes + j);
    for (int k = 1; k < 8 / BITS; ++k)
      bytes = F::either(bytes, F::load_bytes(codes + k * unit + j), BITS * k);
    F::store_bytes(packed + j, bytes);
  }
}

inline void pack_unit(const uint8_t* codes, const Layout& layout, uint8_t* packed) {
  switch (layout.bits) {
    case 1: return pack_unit<1>(codes, layout.unit, packed);
    case 2: return pack_unit<2>(codes, layout.unit, packed);
    case 4: return pack_unit<4>(codes, layout.unit, packed);
    default:  // in sizes the compiler knows: a call would take longer than the copy
      if (layout.unit == 16) std::memcpy(packed, codes, 16);
      else std::memcpy(packed, codes, 32);
  }
}

// Packs a row of codes that are computed F::W at a time: `code_at(f, whole)` gives those of the
// columns from f on, and `whole` says, at compile time, that all of them are there.
template <typename CodeAt>
QLR_ALWAYS_INLINE inline void pack_row_of(const CodeAt& code_at, const Layout& layout,
                                          uint8_t* packed) {
  alignas(64) uint8_t codes[256];  // of a unit in any layout
  const int64_t cols = layout.cols, width = layout.unit * layout.fields;
  uint8_t* const end = packed + layout.stride;
  for (int64_t begin = 0; packed < end; begin += width, packed += layout.unit) {
    const int64_t count = std::min(width, cols - begin);
    if (count + F::W <= width) std::memset(codes, 0, sizeof(codes));
    int64_t f = 0;
    for (; f + F::W <= count; f += F::W)
      F::store_u8(codes + f, code_at(begin + f, std::true_type()));
    if (f < count)
      F::store_u8(codes + f, F::keep(code_at(begin + f, std::false_type()), count - f));
    pack_unit(codes, layout, packed);
  }
}

// Packed bytes to natural-order codes, layout.padded_cols() of them. Eight bytes at a time: no field
// crosses a byte, so whole words can be shifted.
template <int BITS, int UNIT>
inline void unpack_units(const uint8_t* packed, int64_t units, uint8_t* codes) {
  constexpr int kFields = 8 / BITS;
  constexpr uint64_t kMask = 0x0101010101010101u * ((1u << BITS) - 1);
  for (int64_t u = 0; u < units; ++u)
    for (int k = 0; k < kFields; ++k)
      for (int j = 0; j < UNIT; j += 8) {
        uint64_t eight;
        std::memcpy(&eight, packed + u * UNIT + j, 8);
        eight = (eight >> (BITS * k)) & kMask;
        std::memcpy(codes + (u * kFields + k) * UNIT + j, &eight, 8);
      }
}

template <int UNIT>
inline void unpack_row(const uint8_t* packed, const Layout& layout, uint8_t* codes) {
  switch (layout.bits) {
    case 1: return unpack_units<1, UNIT>(packed, layout.units, codes);
    case 2: return unpack_units<2, UNIT>(packed, layout.units, codes);
    case 4: return unpack_units<4, UNIT>(packed, layout.units, codes);
    default: return unpack_units<8, UNIT>(packed, layout.units, codes);
  }
}
inline void unpack_row(const uint8_t* packed, const Layout& layout, uint8_t* codes) {
  if (layout.unit == 16) unpack_row<16>(packed, layout, codes);
  else unpack_row<32>(packed, layout, codes);
}

// The sums of one row, as the epilogue reads them: at(f) is sum of weight times (code - zero point),
// and what multiplies it besides the scales of the columns is `factor`.

// Of integers, from which the integer part of the zero point is subtracted exactly.
struct IntegerSums {
  const int32_t* values;   // padded to whole vectors
  int32_t center_sum;      // center times the number of codes summed
  const float* residual;   // zero point - center of each column, or null
  float count;             // of the codes summed
  float factor;

  F::vf at(int64_t f) const {
    const F::vf y = F::to_float(F::sub_int(F::load_int(values + f), F::set1_int(center_sum)));
    return residual == nullptr ? y : F::fnma(F::load(residual + f), F::set1(count), y);
  }
};

// Of floats that are centered already.
struct FloatSums {
  const float* values;     // padded to whole vectors
  const float* residual;   // as above, or null
  float weight_sum;
  float zero_sum;          // what a zero point per source row leaves, for all columns
  float factor;

  F::vf at(int64_t f) const {
    const F::vf y = F::sub(F::load(values + f), F::set1(zero_sum));
    return residual == nullptr ? y : F::fnma(F::load(residual + f), F::set1(weight_sum), y);
  }
};

// What a row of sums becomes, as floats.
template <typename Sums>
struct FinishedRow {
  Sums sums;
  const float *scale, *bias, *addend;  // of the columns; the latter two may be null
  float addend_scale;
  bool relu;
  int64_t cols;

  // WHOLE: all of F::W columns are there.
  template <bool WHOLE>
  QLR_ALWAYS_INLINE F::vf at(int64_t f) const {
    F::vf y = F::mul(sums.at(f), F::mul(F::load(scale + f), F::set1(sums.factor)));
    if (addend != nullptr)
      y = F::fma(F::set1(addend_scale),
                 WHOLE ? F::load(addend + f) : F::load_partial(addend + f, cols - f), y);
    if (bias != nullptr) y = F::add(y, F::load(bias + f));
    return relu ? F::max(F::zero(), y) : y;  // in this order a NaN stays
  }
};

class Emitter {
 public:
  Emitter(int64_t cols, int64_t rows, const QlrPacked* source, const QlrEpilogue& epilogue)
      : cols_(cols), rows_(rows), padded_(round_up(cols)), epilogue_(epilogue),
        columns_(padded_, source, cols, epilogue),
        layout_(cols, epilogue.quantizer ? storage_bits(epilogue.quantizer->bits) : 8),
        quantizer_(epilogue.quantizer ? *epilogue.quantizer : kNoQuantizer),
        affines_(quantizer_, rows, cols), coder_(quantizer_),
        streams_(epilogue.out != nullptr && rows * cols >= kStreamed && cols % F::W == 0 &&
                 reinterpret_cast<uintptr_t>(epilogue.out) % (F::W * sizeof(float)) == 0) {}
  // To be called when a thread has written its last row.
  void finish() const {
    if (streams_) F::fence();
  }
  int64_t padded() const { return padded_; }
  int32_t center() const { return columns_.center; }
  // zero point - center of each column, or null where that is 0.
  const float* residual() const {
    return columns_.has_residual ? columns_.residual.data() : nullptr;
  }
  float row_factor(int64_t row, int64_t degree) const {
    float factor = epilogue_.row_scale != nullptr ? epilogue_.row_scale[row] : 1.f;
    if (epilogue_.mean) factor /= static_cast<float>(std::max<int64_t>(degree, 1));
    return factor;
  }

  template <typename Sums>
  void row(int64_t i, const Sums& sums) const {
    prefetch(std::min(i + kRowsAhead, rows_ - 1));
    if (epilogue_.out != nullptr) float_row(i, sums);
    else if (affines_.fast()) packed_row<true>(i, sums);
    else packed_row<false>(i, sums);
  }

 private:
  static constexpr float kOne = 1.f, kZero = 0.f;
  static constexpr QlrQuantizer kNoQuantizer{&kOne, &kZero, QLR_PER_TENSOR, 8, 0, 0.f};
  static constexpr int64_t kRowsAhead = 12;
  // Floats that would push the sources out of any cache, to be read again later than that.
  static constexpr int64_t kStreamed = 1 << 22;

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
    return {sums, columns_.scale.data(), columns_.has_bias ? columns_.bias.data() : nullptr,
            epilogue_.addend != nullptr ? epilogue_.addend + i * cols_ : nullptr,
            epilogue_.addend_scale, epilogue_.relu != 0, cols_};
  }
  template <bool FAST, typename Sums>
  QLR_NEVER_INLINE void packed_row(int64_t i, const Sums& sums) const {
    // Copies, which the compiler can keep in registers.
    const auto code_at = [row = finished(i, sums), to = affines_.columns(), coder = coder_](
                             int64_t f, auto whole) QLR_ALWAYS_INLINE {
      return F::to_int(coder.template code<FAST>(row.template at<whole>(f), to.at(f)));
    };
    pack_row_of(code_at, layout_, epilogue_.packed + i * layout_.stride);
  }
  template <typename Sums>
  QLR_NEVER_INLINE void float_row(int64_t i, const Sums& sums) const {
    const FinishedRow<Sums> row = finished(i, sums);
    float* out = epilogue_.out + i * cols_;
    int64_t f = 0;
    if (streams_) {
      for (; f < cols_; f += F::W) F::stream(out + f, row.template at<true>(f));
      return;
    }
    for (; f + F::W <= cols_; f += F::W) F::store(out + f, row.template at<true>(f));
    if (f < cols_) {
      alignas(64) float tail[F::W];
      F::store(tail, row.template at<false>(f));
      std::memcpy(out + f, tail, (cols_ - f) * sizeof(float));
    }
  }

  int64_t cols_, rows_, padded_;
  const QlrEpilogue& epilogue_;
  Columns columns_;
  Layout layout_;
  QlrQuantizer quantizer_;
  Affines affines_;
  Coder coder_;
  bool streams_;
};
