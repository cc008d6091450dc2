// A row of sums to a row of the result: affine map, bias, addend, relu, and then either floats or
// codes, which are quantized and packed here so that they never exist as floats in memory.

// What a column needs, padded to whole vectors and computed once per call.
struct Columns {
  Scratch<float> scale, residual, bias, out_scale, out_zero;
  bool has_residual = false, has_bias;
  int32_t center = 0;

  // `center` is an integer near the zero point. It is subtracted from the integer sums, where
  // nothing is lost; only the `residual` zero - center meets floating point.
  Columns(int64_t padded, const QlrPacked* source, int64_t cols, const QlrEpilogue& epilogue)
      : scale(padded), residual(padded), bias(padded), out_scale(padded), out_zero(padded),
        has_bias(epilogue.bias != nullptr) {
    for (int64_t f = 0; f < cols; ++f) {
      scale[f] = 1.f;
      if (has_bias) bias[f] = epilogue.bias[f];
    }
    if (source != nullptr) set_source(*source, cols);
    const QlrQuantizer* q = epilogue.quantizer;
    for (int64_t f = 0; f < padded; ++f) {
      const int64_t k = q != nullptr && q->axis == QLR_PER_COLUMN && f < cols ? f : 0;
      out_scale[f] = q != nullptr ? q->scale[k] : 1.f;
      out_zero[f] = q != nullptr ? q->zero[k] : 0.f;
    }
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

// Values to codes, a vector at a time. Division and addition stay apart, as in the definition.
struct Coder {
  F::vf top, raw_top, step, skew;
  bool truncate;

  explicit Coder(const QlrQuantizer& q) {
    top = F::set1(static_cast<float>((1 << q.bits) - 1));
    raw_top = q.truncate ? F::set1(255.f) : top;
    step = F::set1(static_cast<float>(255.0 / ((1 << q.bits) - 1)));
    skew = F::set1(q.skew);
    truncate = q.truncate != 0;
  }
  F::vf clamp(F::vf a, F::vf high) const { return F::min(F::max(a, F::zero()), high); }
  // The rounded quotient before any clamp.
  F::vf raw(F::vf x, F::vf scale, F::vf zero) const {
    return F::round(F::add(F::div(x, scale), zero));
  }
  // The truncated code before its clamp.
  F::vf cut(F::vf raw_code) const {
    return F::round(F::div(F::add(clamp(raw_code, raw_top), skew), step));
  }
  F::vf operator()(F::vf x, F::vf scale, F::vf zero) const {
    const F::vf q = raw(x, scale, zero);
    return clamp(truncate ? cut(q) : q, top);
  }
};

// Natural-order codes of a whole padded row to its packed bytes.
template <int UNIT>
inline void pack_units(const uint8_t* codes, const Layout& layout, uint8_t* packed) {
  for (int64_t u = 0; u < layout.units; ++u) {
    const uint8_t* plane = codes + u * layout.fields * UNIT;
    uint8_t unit[UNIT];
    std::memcpy(unit, plane, UNIT);
    for (int k = 1; k < layout.fields; ++k) {
      plane += UNIT;
      for (int j = 0; j < UNIT; ++j)
        unit[j] |= static_cast<uint8_t>(plane[j] << (k * layout.bits));
    }
    std::memcpy(packed + u * UNIT, unit, UNIT);
  }
}

inline void pack_row(const uint8_t* codes, const Layout& layout, uint8_t* packed) {
  if (layout.unit == 16) pack_units<16>(codes, layout, packed);
  else pack_units<32>(codes, layout, packed);
}

// Codes that are computed F::W at a time to packed bytes: as many neighbouring bytes at a time, whose
// fields are joined in a register. `code_at(f, whole)` gives the codes of the columns from f on, and
// `whole` says, at compile time, that all of them are there.
template <int BITS, int K = 0, typename CodeAt>
inline F::vb join_fields(const CodeAt& code_at, int64_t f, int unit, int64_t cols, F::vb bytes) {
  if (f + F::W <= cols)
    bytes = F::template either<BITS * K>(bytes, code_at(f, std::true_type()));
  else if (f < cols)
    bytes = F::template either<BITS * K>(bytes, F::keep(code_at(f, std::false_type()), cols - f));
  if constexpr (BITS * (K + 1) < 8)
    return join_fields<BITS, K + 1>(code_at, f + unit, unit, cols, bytes);
  else return bytes;
}

template <int BITS, typename CodeAt>
inline void pack_row_of(const CodeAt& code_at, const Layout& layout, uint8_t* to) {
  const int unit = layout.unit;
  for (int64_t u = 0, f = 0; u < layout.units; ++u, f += unit * (8 / BITS))
    for (int j = 0; j < unit; j += F::W)
      F::store_bytes(to + u * unit + j, join_fields<BITS>(code_at, f + j, unit, layout.cols,
                                                          F::no_bytes()));
}

template <typename CodeAt>
inline void pack_row_of(const CodeAt& code_at, const Layout& layout, uint8_t* to) {
  switch (layout.bits) {
    case 1: return pack_row_of<1>(code_at, layout, to);
    case 2: return pack_row_of<2>(code_at, layout, to);
    case 4: return pack_row_of<4>(code_at, layout, to);
    default: return pack_row_of<8>(code_at, layout, to);
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

class Emitter {
 public:
  Emitter(int64_t cols, int64_t rows, const QlrPacked* source, const QlrEpilogue& epilogue)
      : cols_(cols), rows_(rows), padded_(round_up(cols)), epilogue_(epilogue),
        columns_(padded_, source, cols, epilogue),
        layout_(cols, epilogue.quantizer ? storage_bits(epilogue.quantizer->bits) : 8),
        coder_(epilogue.quantizer ? *epilogue.quantizer : QlrQuantizer{nullptr, nullptr, -1, 8, 0, 0.f}),
        streams_(epilogue.out != nullptr && rows * cols >= kStreamed && cols % F::W == 0 &&
                 reinterpret_cast<uintptr_t>(epilogue.out) % (F::W * sizeof(float)) == 0) {}
  // To be called when a thread has written its last row.
  void finish() const {
    if (streams_) F::fence();
  }
  // Room for the sums of a row, in any layout a kernel may write.
  static int64_t round_up(int64_t cols) { return (cols + 1023) / 256 * 256; }
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
    if (epilogue_.addend != nullptr) prefetch_addend(i + kRowsAhead);
    if (epilogue_.out != nullptr) return float_row(i, sums);
    const float* addend = addend_row(i);
    const auto code_at = [&](int64_t f, auto whole) {
      const F::vf y = value<decltype(whole)::value>(f, sums, addend);
      return F::to_int(coder_(y, F::load(&columns_.out_scale.data()[f]),
                              F::load(&columns_.out_zero.data()[f])));
    };
    pack_row_of(code_at, layout_, epilogue_.packed + i * layout_.stride);
  }

 private:
  static constexpr int64_t kRowsAhead = 6;
  // Floats that would push the sources out of any cache, to be read again later than that.
  static constexpr int64_t kStreamed = 1 << 22;

  // The rows of the addend are read in order, but the gathers in between hide that from hardware.
  void prefetch_addend(int64_t i) const {
    const float* p = epilogue_.addend + std::min(i, rows_ - 1) * cols_;
    for (int64_t f = 0; f < cols_; f += 16) prefetch_line(p + f);
  }
  template <typename Sums>
  void float_row(int64_t i, const Sums& sums) const {
    const float* addend = addend_row(i);
    float* out = epilogue_.out + i * cols_;
    int64_t f = 0;
    if (streams_) {
      for (; f < cols_; f += F::W) F::stream(out + f, value<true>(f, sums, addend));
      return;
    }
    for (; f + F::W <= cols_; f += F::W) F::store(out + f, value<true>(f, sums, addend));
    if (f < cols_) {
      alignas(64) float tail[F::W];
      F::store(tail, value<false>(f, sums, addend));
      std::memcpy(out + f, tail, (cols_ - f) * sizeof(float));
    }
  }
  const float* addend_row(int64_t i) const {
    return epilogue_.addend != nullptr ? epilogue_.addend + i * cols_ : nullptr;
  }
  // WHOLE: all of F::W columns are there.
  template <bool WHOLE, typename Sums>
  F::vf value(int64_t f, const Sums& sums, const float* addend) const {
    F::vf y = F::mul(sums.at(f), F::mul(F::load(&columns_.scale.data()[f]), F::set1(sums.factor)));
    if (addend != nullptr)
      y = F::fma(F::set1(epilogue_.addend_scale),
                 WHOLE ? F::load(addend + f) : F::load_partial(addend + f, cols_ - f), y);
    if (columns_.has_bias) y = F::add(y, F::load(&columns_.bias.data()[f]));
    return epilogue_.relu ? F::max(F::zero(), y) : y;  // in this order a NaN stays
  }

  int64_t cols_, rows_, padded_;
  const QlrEpilogue& epilogue_;
  Columns columns_;
  Layout layout_;
  Coder coder_;
  bool streams_;
};
