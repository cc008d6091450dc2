// Values to codes and back, and the fake quantization of training.

// Whether all values of these rows were finite.
template <bool FAST>
inline bool quantize_rows(const float* x, int64_t cols, const QlrQuantizer& q,
                          const Affines& affines, uint8_t* packed, int64_t first, int64_t last) {
  const Layout layout(cols, storage_bits(q.bits));
  const Coder coder(q);
  FiniteCheck check{F::zero()};
  for (int64_t i = first; i < last; ++i) {
    const float* row = x + i * cols;
    const Affine of_row = affines.row(i);
    const auto code_at = [&](int64_t f) QLR_ALWAYS_INLINE {
      const F::vf y = check.see(load_columns(row, f, cols));
      return F::to_int(coder.template code<FAST>(y, affines.at(of_row, f)));
    };
    pack_row_of(code_at, layout, packed + i * layout.stride);
  }
  return check.holds();
}

// The same by QuickCodes; a vector that holds a code in doubt is coded by the definition.
inline bool quantize_rows_quickly(const float* x, int64_t cols, const QlrQuantizer& q,
                                  const Affines& affines, uint8_t* packed, int64_t first,
                                  int64_t last) {
  const Layout layout(cols, storage_bits(q.bits));
  const Coder coder(q);
  const QuickCodes quick(q);
  FiniteCheck check{F::zero()};
  for (int64_t i = first; i < last; ++i) {
    const auto code_at = [row = x + i * cols, a = affines.row(i), cols, &coder, &quick,
                          &check](int64_t f) QLR_ALWAYS_INLINE {
      const F::vf y = check.see(load_columns(row, f, cols));
      F::vi doubt = F::set1_int(1);
      const F::vi code = quick.code(y, a, doubt);
      if (QLR_LIKELY(!F::any_zero(doubt))) return code;
      return F::to_int(coder.template code<true>(y, a));
    };
    pack_row_of(code_at, layout, packed + i * layout.stride);
  }
  return check.holds();
}

inline bool quantize_rows(const float* x, int64_t cols, const QlrQuantizer& q,
                          const Affines& affines, uint8_t* packed, int64_t first, int64_t last) {
  if (affines.quick()) return quantize_rows_quickly(x, cols, q, affines, packed, first, last);
  if (affines.fast()) return quantize_rows<true>(x, cols, q, affines, packed, first, last);
  return quantize_rows<false>(x, cols, q, affines, packed, first, last);
}

// For one and two bits: their thresholds, F::W columns of each code side by side.
class QuantizerThresholds {
 public:
  QuantizerThresholds(const QlrQuantizer& q, const Affines& affines, int64_t cols)
      : any_(affines.fast() && cols > 0 && thresholds_suit(q)),
        values_(any_ ? kCodes * round_up(cols) : 0) {
    if (!any_) return;
    std::fill_n(values_.data(), kCodes * round_up(cols), std::nanf(""));
    find_thresholds(q, nullptr, -INFINITY, cols, [&](int64_t f, int n, float threshold) {
      values_[f / F::W * F::W * kCodes + (n - 1) * F::W + f % F::W] = threshold;
    });
  }
  bool any() const { return any_; }

  // Whether all values of these rows were finite.
  template <int BITS>
  bool pack_rows(const float* x, int64_t cols, uint8_t* packed, int64_t first, int64_t last) const {
    const Layout layout(cols, BITS);
    FiniteCheck check{F::zero()};
    const auto thresholds_at = [t = values_.data()](int64_t f) {
      return t + f * kCodes;
    };
    for (int64_t i = first; i < last; ++i) {
      const auto value_at = [cols, &check, row = x + i * cols](int64_t f) QLR_ALWAYS_INLINE {
        return check.see(load_columns(row, f, cols));
      };
      pack_row_by<BITS>(value_at, thresholds_at, layout, packed + i * layout.stride);
    }
    return check.holds();
  }

 private:
  static constexpr int kCodes = 3;
  bool any_;
  Scratch<float> values_;
};

// Rows to codes by one quantizer, in the fastest way that gives the codes of the definition.
class RowPacker {
 public:
  RowPacker(const QlrQuantizer& q, int64_t rows, int64_t cols)
      : q_(q), cols_(cols), affines_(q, rows, cols), thresholds_(q, affines_, cols) {}

  // Whether all values of rows [first, last) were finite.
  bool pack(const float* x, uint8_t* packed, int64_t first, int64_t last) const {
    if (!thresholds_.any()) return quantize_rows(x, cols_, q_, affines_, packed, first, last);
    if (q_.bits == 1) return thresholds_.pack_rows<1>(x, cols_, packed, first, last);
    return thresholds_.pack_rows<2>(x, cols_, packed, first, last);
  }

 private:
  const QlrQuantizer& q_;
  int64_t cols_;
  Affines affines_;
  QuantizerThresholds thresholds_;
};

inline int32_t quantize_pack(const float* x, int64_t rows, int64_t cols, const QlrQuantizer& q,
                             uint8_t* packed, int threads) {
  const RowPacker packer(q, rows, cols);
  std::atomic<bool> finite{true};
  parallel_rows(rows, cols * 4, threads, [&](int64_t first, int64_t last) {
    if (!packer.pack(x, packed, first, last)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load() ? QLR_OK : QLR_NOT_FINITE;
}

inline int32_t pack(const uint8_t* codes, int64_t rows, int64_t cols, int bits, uint8_t* packed,
                    int threads) {
  const Layout layout(cols, bits);
  const int64_t width = layout.unit * layout.fields;
  std::atomic<bool> fit{true};
  parallel_rows(rows, cols, threads, [&](int64_t first, int64_t last) {
    Scratch<uint8_t> row(layout.padded_cols());
    uint8_t used = 0;
    for (int64_t i = first; i < last; ++i) {
      copy(row.data(), codes + i * cols, cols);
      for (int64_t f = 0; f < cols; ++f) used |= row[f];
      for (int64_t u = 0; u < layout.units; ++u)
        pack_unit(row.data() + u * width, layout, packed + i * layout.stride + u * layout.unit);
    }
    if (used >> bits) fit.store(false, std::memory_order_relaxed);
  });
  return fit.load() ? QLR_OK : QLR_BAD_CODE;
}

inline int32_t unpack(const QlrPacked& source, uint8_t* codes, int threads) {
  const Layout layout(source.cols, source.bits);
  parallel_rows(source.rows, source.cols, threads, [&](int64_t first, int64_t last) {
    Scratch<uint8_t> row(layout.padded_cols());
    for (int64_t i = first; i < last; ++i) {
      unpack_row(source.data + i * layout.stride, layout, row.data());
      copy(codes + i * source.cols, row.data(), source.cols);
    }
  });
  return QLR_OK;
}

inline int32_t dequantize(const QlrPacked& source, float* values, int threads) {
  const Layout layout(source.cols, source.bits);
  const int64_t cols = source.cols;
  const QlrQuantizer q{source.scale, source.zero, source.axis, 8, 0, 0.f};
  const Affines affines(q, source.rows, cols);
  parallel_rows(source.rows, cols * 4, threads, [&](int64_t first, int64_t last) {
    Scratch<uint8_t> row(layout.padded_cols() + F::W);
    alignas(64) float out[F::W];
    for (int64_t i = first; i < last; ++i) {
      unpack_row(source.data + i * layout.stride, layout, row.data());
      const Affine of_row = affines.row(i);
      for (int64_t f = 0; f < cols; f += F::W) {
        const F::vf c = F::load_field(row.data() + f, 0, 255);
        const Affine a = affines.at(of_row, f);
        const F::vf y = F::mul(a.scale.by, F::sub(c, a.zero));
        if (f + F::W <= cols) {
          F::store(values + i * cols + f, y);
        } else {
          F::store(out, y);
          std::memcpy(values + i * cols + f, out, (cols - f) * sizeof(float));
        }
      }
    }
  });
  return QLR_OK;
}

// Where x is finite; a NaN or an infinity stands for itself, and no gradient passes there.
inline F::vf where_finite(F::vf x) {
  return F::between(x, F::set1(-std::numeric_limits<float>::max()),
                    F::set1(std::numeric_limits<float>::max()));
}

// Values to those of their codes, and where the gradient passes. FINITE: all of them are.
template <bool FAST, bool FINITE, bool TRUNCATE>
struct FakeCoder {
  Coder coder;

  QLR_ALWAYS_INLINE void of(F::vf value, const Affine& a, F::vf& y, F::vf& in) const {
    F::vf scale = a.scale.by, zero = a.zero;
    const F::vf raw = coder.template raw<FAST>(value, a);
    F::vf code = raw;
    in = F::between(raw, F::zero(), coder.raw_top);
    if constexpr (TRUNCATE) {
      code = coder.template cut<FAST>(raw);
      in = F::mul(in, F::between(code, F::zero(), coder.top));
      scale = F::mul(scale, coder.step.by);
      zero = F::div(zero, coder.step.by);
    }
    y = F::mul(scale, F::sub(coder.clamp(code, coder.top), zero));
    if constexpr (!FINITE) {
      const F::vf finite = where_finite(value);
      in = F::mul(finite, in);
      y = F::choose(finite, y, value);
    }
  }
  // `count` values side by side, those from f on with the affine at(f).
  template <typename At>
  QLR_ALWAYS_INLINE void row(const float* x, int64_t count, const At& at, float* x_hat,
                             uint8_t* mask) const {
    int64_t f = 0;
    F::vf y, in;
    for (; f + F::W <= count; f += F::W) {
      of(F::load(x + f), at(f), y, in);
      F::store(x_hat + f, y);
      F::store_u8(mask + f, F::to_int(in));
    }
    const int64_t rest = count - f;
    if (rest <= 0) return;
    alignas(64) float values[F::W];
    uint8_t inside[F::W];
    of(F::load_partial(x + f, rest), at(f), y, in);
    F::store(values, y);
    F::store_u8(inside, F::to_int(in));
    std::memcpy(x_hat + f, values, rest * sizeof(float));
    std::memcpy(mask + f, inside, rest);
  }
};

template <bool FAST, bool FINITE, bool TRUNCATE>
inline void fake_quantize_rows(const float* x, int64_t cols, const QlrQuantizer& q,
                               const Affines& affines, float* x_hat, uint8_t* mask, int64_t first,
                               int64_t last) {
  const FakeCoder<FAST, FINITE, TRUNCATE> coder{Coder(q)};
  if (q.axis == QLR_PER_TENSOR) {  // rows are as good as one long one
    const auto same = [a = affines.row(0)](int64_t) QLR_ALWAYS_INLINE {
      return a;
    };
    const int64_t begin = first * cols;
    return coder.row(x + begin, (last - first) * cols, same, x_hat + begin, mask + begin);
  }
  for (int64_t i = first; i < last; ++i) {
    const auto at = [&, of_row = affines.row(i)](int64_t f) QLR_ALWAYS_INLINE {
      return affines.at(of_row, f);
    };
    coder.row(x + i * cols, cols, at, x_hat + i * cols, mask + i * cols);
  }
}

template <bool FINITE, bool TRUNCATE>
inline int32_t fake_quantize_as(const float* x, int64_t rows, int64_t cols, const QlrQuantizer& q,
                                float* x_hat, uint8_t* mask, int threads) {
  const Affines affines(q, rows, cols);
  parallel_rows(rows, cols * 9, threads, [&](int64_t first, int64_t last) {
    if (affines.fast())
      fake_quantize_rows<true, FINITE, TRUNCATE>(x, cols, q, affines, x_hat, mask, first, last);
    else fake_quantize_rows<false, FINITE, TRUNCATE>(x, cols, q, affines, x_hat, mask, first, last);
  });
  return QLR_OK;
}

template <bool FINITE>
inline int32_t fake_quantize_as(const float* x, int64_t rows, int64_t cols, const QlrQuantizer& q,
                                float* x_hat, uint8_t* mask, int threads) {
  return q.truncate ? fake_quantize_as<FINITE, true>(x, rows, cols, q, x_hat, mask, threads)
                    : fake_quantize_as<FINITE, false>(x, rows, cols, q, x_hat, mask, threads);
}

inline int32_t fake_quantize(const float* x, int64_t rows, int64_t cols, const QlrQuantizer& q,
                             float* x_hat, uint8_t* mask, int threads) {
  return fake_quantize_as<false>(x, rows, cols, q, x_hat, mask, threads);
}

// One piece of the backward pass: columns [0, cols) of one row, and the sums it adds to.
struct BackwardRow {
  const float *grad, *x, *x_hat;
  const uint8_t* mask;
  float* grad_x;

  // g * (y - value * inside), and gx = g * inside; both are 0 where the value is not finite. The
  // difference is exact enough in float: both are of the size of x; what needs double is the sum over
  // many rows.
  F::vf part(F::vf inside, F::vf g, F::vf value, F::vf y, F::vf& gx) const {
    gx = F::choose(inside, g, F::zero());
    const F::vf apart = F::sub(y, F::choose(inside, value, F::zero()));
    return F::choose(where_finite(value), F::mul(g, apart), F::zero());
  }
  // The first of them, for up to F::W columns; the second is stored.
  F::vf step(int64_t at, int64_t count) const {
    F::vf gx;
    if (count >= F::W) {
      const F::vf inside = F::load_field(mask + at, 0, 1);
      const F::vf found =
          part(inside, F::load(grad + at), F::load(x + at), F::load(x_hat + at), gx);
      F::store(grad_x + at, gx);
      return found;
    }
    uint8_t padded[F::W] = {0};
    std::memcpy(padded, mask + at, count);
    const F::vf found =
        part(F::load_field(padded, 0, 1), F::load_partial(grad + at, count),
             F::load_partial(x + at, count), F::load_partial(x_hat + at, count), gx);
    alignas(64) float out[F::W];
    F::store(out, gx);
    std::memcpy(grad_x + at, out, count * sizeof(float));
    return found;
  }
  // The sum of a row: short float sums joined in double.
  double sum(int64_t begin, int64_t cols) const {
    constexpr int64_t kRun = 32 * F::W;
    double total = 0;
    for (int64_t f = 0; f < cols; f += kRun) {
      F::vf part = F::zero();
      for (int64_t g = f; g < std::min(cols, f + kRun); g += F::W)
        part = F::add(part, step(begin + g, cols - g));
      total += F::sum(part);
    }
    return total;
  }
  void add_columns(int64_t begin, int64_t cols, double* sums) const {
    alignas(64) float part[F::W];
    for (int64_t f = 0; f < cols; f += F::W) {
      F::store(part, step(begin + f, cols - f));
      for (int64_t k = 0; k < std::min<int64_t>(F::W, cols - f); ++k) sums[f + k] += part[k];
    }
  }
};

// Sums are taken per piece of rows and then in the order of the pieces, whose number depends on
// the shape alone: the result is the same for any number of threads.
inline int32_t fake_quantize_backward(const float* grad, const float* x, const float* x_hat,
                                      const uint8_t* mask, int64_t rows, int64_t cols, int axis,
                                      float* grad_x, float* reduced, int threads) {
  const BackwardRow row{grad, x, x_hat, mask, grad_x};
  if (axis == QLR_PER_ROW) {
    parallel_rows(rows, cols * 17, threads, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        reduced[i] = static_cast<float>(row.sum(i * cols, cols));
    });
    return QLR_OK;
  }
  const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(64, rows * cols / 8192));
  const int64_t width = axis == QLR_PER_COLUMN ? cols : 1;
  Scratch<double> partial(pieces * width);
  parallel_pieces(pieces, pieces, rows * cols < (1 << 15) ? 1 : threads,
                  [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      double* sums = partial.data() + p * width;
      const int64_t first = rows * p / pieces, last = rows * (p + 1) / pieces;
      if (axis == QLR_PER_COLUMN) {
        for (int64_t i = first; i < last; ++i) row.add_columns(i * cols, cols, sums);
      } else {
        *sums = row.sum(first * cols, (last - first) * cols);
      }
    }
  });
  for (int64_t f = 0; f < width; ++f) {
    double total = 0;
    for (int64_t p = 0; p < pieces; ++p) total += partial[p * width + f];
    reduced[f] = static_cast<float>(total);
  }
  return QLR_OK;
}
