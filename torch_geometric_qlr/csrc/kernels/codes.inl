// Values to codes, and codes to packed rows and back.

// Room for the columns of a row, in any layout a kernel may write.
inline int64_t round_up(int64_t cols) { return (cols + 1023) / 256 * 256; }

// Whether all values seen are numbers: only what is NaN or infinite is not zero times zero.
struct FiniteCheck {
  F::vf sum;  // zero to begin with
  QLR_ALWAYS_INLINE F::vf see(F::vf y) {
    sum = F::fma(y, F::zero(), sum);
    return y;
  }
  QLR_ALWAYS_INLINE bool holds() const { return !F::any_nan(sum); }
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

// Whether all `count` scales suit a Divisor, and no zero point brings back what lies beyond its limits.
inline bool divides_fast(const QlrQuantizer& q, int64_t count) {
  bool fast = F::kFused;
  for (int64_t k = 0; k < count; ++k)
    fast &= Divisor::suits(q.scale[k]) && std::fabs(q.zero[k]) <= 0x1p16f;
  return fast;
}

// The parameters of a quantizer, prepared once per call.
class Affines {
 public:
  Affines(const QlrQuantizer& q, int64_t rows, int64_t cols)
      : q_(q), by_column_(q.axis == QLR_PER_COLUMN),
        padded_(by_column_ && cols > 0 ? round_up(cols) : 0), values_(3 * padded_) {
    const int64_t count = by_column_ ? cols : q.axis == QLR_PER_ROW ? rows : 1;
    fast_ = divides_fast(q, count);
    quick_ = fast_ && !by_column_ && !q.truncate;
    for (int64_t k = 0; k < count; ++k) quick_ &= std::fabs(q.zero[k]) <= 1 << q.bits;
    for (int64_t f = 0; f < padded_; ++f) {
      const int64_t k = f < cols ? f : 0;
      values_[f] = q.scale[k];
      values_[padded_ + f] = 1.f / q.scale[k];
      values_[2 * padded_ + f] = q.zero[k];
    }
  }
  bool fast() const { return fast_; }
  bool quick() const { return quick_; }  // whether QuickCodes suit, a row at a time
  // Of a row, unless columns decide.
  Affine row(int64_t i) const {
    if (by_column_) return Affine{};
    const int64_t k = q_.axis == QLR_PER_ROW ? i : 0;
    return {{F::set1(q_.scale[k]), F::set1(1.f / q_.scale[k])}, F::set1(q_.zero[k])};
  }
  // Of the columns from f on, given that of their row.
  Affine at(const Affine& row, int64_t f) const {
    if (!by_column_) return row;
    const float* p = values_.data() + f;
    return {{F::load(p), F::load(p + padded_)}, F::load(p + 2 * padded_)};
  }

 private:
  const QlrQuantizer& q_;
  bool by_column_, fast_, quick_;
  int64_t padded_;
  Scratch<float> values_;  // scales, inverses, zero points of the columns
};

// Values to codes, a vector at a time. Division and addition stay apart, as in the definition.
// FAST: see divides_fast.
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

// Codes in the order of the columns to the packed bytes of a unit. No field leaves its byte, so whole
// words can be shifted.
template <int BITS, int UNIT>
inline void pack_unit(const uint8_t* codes, uint8_t* packed) {
  for (int j = 0; j < UNIT; j += 8) {
    uint64_t bytes, more;
    std::memcpy(&bytes, codes + j, 8);
    for (int k = 1; k < 8 / BITS; ++k) {
      std::memcpy(&more, codes + k * UNIT + j, 8);
      bytes |= more << (BITS * k);
    }
    std::memcpy(packed + j, &bytes, 8);
  }
}

template <int UNIT>
inline void pack_unit(const uint8_t* codes, int bits, uint8_t* packed) {
  switch (bits) {
    case 1: return pack_unit<1, UNIT>(codes, packed);
    case 2: return pack_unit<2, UNIT>(codes, packed);
    case 4: return pack_unit<4, UNIT>(codes, packed);
    default: std::memcpy(packed, codes, UNIT);
  }
}

inline void pack_unit(const uint8_t* codes, const Layout& layout, uint8_t* packed) {
  if (layout.unit == 16) pack_unit<16>(codes, layout.bits, packed);
  else pack_unit<32>(codes, layout.bits, packed);
}

// `count` codes, computed F::W at a time by code_at(f) for those from f on, as bytes; zeros up to the
// next whole vector.
template <typename CodeAt>
QLR_ALWAYS_INLINE inline void put_codes(const CodeAt& code_at, int64_t first, int64_t count,
                                        uint8_t* to) {
  int64_t f = 0;
  for (; f + 4 * F::W <= count; f += 4 * F::W) {
    const F::vi four[4] = {code_at(first + f), code_at(first + f + F::W),
                           code_at(first + f + 2 * F::W), code_at(first + f + 3 * F::W)};
    F::store_four(to + f, four);
  }
  for (; f + F::W <= count; f += F::W) F::store_u8(to + f, code_at(first + f));
  if (f < count) F::store_u8(to + f, F::keep(code_at(first + f), count - f));
}

// The same for all codes of a unit, zeros past the last, in stores as wide as the loads that follow: one
// that spans several stores would wait for them.
template <typename CodeAt>
QLR_ALWAYS_INLINE inline void put_unit(const CodeAt& code_at, int64_t first, int64_t count,
                                       int64_t width, uint8_t* to) {
  for (int64_t f = 0; f < width; f += 4 * F::W) {
    F::vi four[4];
    for (int k = 0; k < 4; ++k) {
      const int64_t at = f + k * F::W;
      if (at + F::W <= count) four[k] = code_at(first + at);
      else four[k] = at < count ? F::keep(code_at(first + at), count - at) : F::set1_int(0);
    }
    F::store_four(to + f, four);
  }
}

// Packs a row of codes that are computed F::W at a time: code_at(f) gives those of the columns from f
// on, and may give anything past the last. Codes of 8 bits lie in the order of the columns; a copy of
// them would have to wait for the stores.
template <typename CodeAt>
QLR_ALWAYS_INLINE inline void pack_row_of(const CodeAt& code_at, const Layout& layout,
                                          uint8_t* packed) {
  const int64_t cols = layout.cols;
  if (layout.bits == 8) {
    put_codes(code_at, 0, cols, packed);
    for (int64_t f = (cols + F::W - 1) / F::W * F::W; f < layout.stride; f += F::W)
      F::store_u8(packed + f, F::set1_int(0));
    return;
  }
  alignas(64) uint8_t codes[256];  // of a unit in any layout
  const int64_t width = layout.unit * layout.fields;
  uint8_t* const end = packed + layout.stride;
  for (int64_t begin = 0; packed < end; begin += width, packed += layout.unit) {
    put_unit(code_at, begin, std::min(width, cols - begin), width, codes);
    pack_unit(codes, layout, packed);
  }
}

// The columns from f on of a row of floats that has `cols` of them; zeros past the last.
QLR_ALWAYS_INLINE inline F::vf load_columns(const float* row, int64_t f, int64_t cols) {
  return f + F::W <= cols ? F::load(row + f) : F::load_partial(row + f, cols - f);
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
