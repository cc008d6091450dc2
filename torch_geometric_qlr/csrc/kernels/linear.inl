// y = x w^T for packed x and packed w, exact in int32, affine in both:
//
//   sum over k of (c_x - Z_x) (c_w - Z_w)
//
// Each zero point is an integer near it, subtracted exactly, and a rest of at most one half, which
// meets floating point. Weights are unpacked once per call into panels, see `Panels`. Rows of x are
// unpacked Products::kBlockRows at a time and stay in the first cache.

constexpr int64_t kMaxInputs = 1 << 15;  // 255 * 255 * 2^15 < 2^31

template <typename Weight>
struct LinearWeight {
  // `x_center` is the integer near the zero point of the input, `x_top` its largest code.
  LinearWeight(const QlrPacked& w, int32_t x_center, int32_t x_top)
      : inputs(w.cols), outputs(w.rows), panels(w.cols, w.rows), values(panels.padded),
        sum(panels.padded), center(panels.padded), residual(panels.padded) {
    const Layout layout(w.cols, w.bits);
    Scratch<uint8_t> codes(layout.padded_cols());
    Scratch<Weight> row(panels.inputs());
    int32_t largest = 1;
    for (int64_t o = 0; o < outputs; ++o) {
      unpack_row(w.data + o * layout.stride, layout, codes.data());
      const float zero = w.zero[w.axis == QLR_PER_ROW ? o : 0];
      const int32_t near = near_zero_point(zero, (1 << w.bits) - 1);
      // Of 8 bits only 128 leaves bytes for sure; what is missing to the integer comes later.
      const int32_t shift = sizeof(Weight) == 1 && w.bits == 8 ? 128 : near;
      int32_t total = 0;
      for (int64_t k = 0; k < inputs; ++k) {
        const int32_t value = codes[k] - shift;
        row[k] = static_cast<Weight>(value);
        total += value;
        largest = std::max(largest, std::abs(value));
      }
      panels.set(o, row.data());
      center[o] = near - shift;
      values[o] = total;
      sum[o] = total - center[o] * static_cast<int32_t>(inputs);
      panels.start[o] = -x_center * sum[o];
      residual[o] = zero - static_cast<float>(near);
      has_center |= center[o] != 0;
      has_residual |= residual[o] != 0.f;
    }
    panels.words = 32767 / (2 * x_top * largest);
  }

  int64_t inputs, outputs;
  Panels<Weight> panels;
  Scratch<int32_t> values;  // their sum, as they are in the panels
  Scratch<int32_t> sum;     // of (c_w - its integer)
  Scratch<int32_t> center;  // what the weights of a panel still have to lose to be that
  Scratch<float> residual;
  bool has_center = false, has_residual = false;
};

struct LinearInput {
  const QlrPacked& x;
  Layout layout;
  int32_t center;

  LinearInput(const QlrPacked& packed) : x(packed), layout(packed.cols, packed.bits) {
    const float middle = static_cast<float>(1 << (x.bits - 1));
    center = near_zero_point(x.axis == QLR_PER_TENSOR ? x.zero[0] : middle, (1 << x.bits) - 1);
  }
  float scale(int64_t row) const { return x.scale[x.axis == QLR_PER_ROW ? row : 0]; }
  float residual(int64_t row) const {
    return x.zero[x.axis == QLR_PER_ROW ? row : 0] - static_cast<float>(center);
  }
  // What stands for zero in a row.
  int32_t zero_code(int64_t row) const {
    return near_zero_point(x.zero[x.axis == QLR_PER_ROW ? row : 0], (1 << x.bits) - 1);
  }
  // Codes of a row. What is past the last meets weights of zero.
  template <typename Code>
  void load(int64_t row, Code* codes) const {
    const uint8_t* const packed = x.data + row * layout.stride;
    if constexpr (sizeof(Code) > 1) std::copy_n(packed, layout.padded_cols(), codes);  // of 8 bits
    else unpack_row(packed, layout, codes);
  }
};

// The integer products of a row as the epilogue reads them.
struct ProductSums {
  const int32_t* products;
  const int32_t* center;    // of the weights, see LinearWeight; null if there is none
  int32_t code_sum;         // of c_x, if there is
  const float* w_residual;  // of the weights, null if there is none
  float x_rest;             // of the input, if there is: the sum of c_x - Z_x
  const int32_t* w_sum;     // of the weights
  float x_residual;         // of the input
  float scale;              // of the input
  static constexpr float rest = 0.f;

  F::vf scale_of(F::vf column_scale) const { return F::mul(column_scale, F::set1(scale)); }
  QLR_ALWAYS_INLINE F::vf at(int64_t o) const {
    F::vi p = F::load_int(products + o);
    // The panel's bytes miss `center` of the weights, on every input.
    if (center != nullptr)
      p = F::sub_int(p, F::mul_int(F::load_int(center + o), F::set1_int(code_sum)));
    F::vf y = F::to_float(p);
    if (w_residual != nullptr) y = F::fnma(F::load(w_residual + o), F::set1(x_rest), y);
    if (x_residual == 0.f) return y;
    return F::fnma(F::to_float(F::load_int(w_sum + o)), F::set1(x_residual), y);
  }
  bool is_simple() const { return center == nullptr && w_residual == nullptr; }
  QLR_ALWAYS_INLINE F::vf simple_at(int64_t o, const float*) const {
    return F::fnma(F::to_float(F::load_int(w_sum + o)), F::set1(x_residual),
                   F::to_float(F::load_int(products + o)));
  }
};

template <int B>
inline int32_t linear_rows(const QlrPacked& x, const QlrPacked& weight, const QlrEpilogue& epilogue,
                           int threads) {
  using Code = Dot::Code<B>;
  using Weight = Dot::Weight<B>;
  const LinearInput input(x);
  const LinearWeight<Weight> w(weight, input.center, (1 << x.bits) - 1);
  // To the epilogue the outputs are columns, with the scale of the weights.
  Scratch<float> zeros(w.outputs);
  const int32_t axis = weight.axis == QLR_PER_ROW ? QLR_PER_COLUMN : QLR_PER_TENSOR;
  const QlrPacked columns{nullptr, 0, w.outputs, 1, axis, weight.scale, zeros.data()};
  const Emitter emitter(w.outputs, x.rows, &columns, epilogue);
  constexpr int64_t kBlockRows = Products::kBlockRows;
  const int64_t stride = std::max(input.layout.padded_cols(), w.panels.inputs());
  const int64_t padded = w.panels.padded, blocks = (x.rows + kBlockRows - 1) / kBlockRows;
  const bool wants_sum = w.has_center || w.has_residual;
  parallel_rows(blocks, kBlockRows * w.inputs * w.outputs / 16, threads,
                [&](int64_t first, int64_t last) {
    const Products multiply;
    SparseRows<B> sparse(w.panels, w.values.data());
    Scratch<Code> codes(kBlockRows * stride + 64);
    Scratch<int32_t> products(kBlockRows * padded);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlockRows, end = std::min(begin + kBlockRows, x.rows);
      for (int64_t i = begin; i < end; ++i) input.load(i, codes.data() + (i - begin) * stride);
      const int count = static_cast<int>(end - begin);
      const auto zero_code = [&](int r) {
        return input.zero_code(begin + r);
      };
      if (sparse.suit(codes.data(), stride, count, zero_code))
        sparse.run(codes.data(), stride, count, products.data());
      else multiply.template run<B>(codes.data(), stride, w.panels, products.data());
      for (int64_t i = begin; i < end; ++i) {
        int32_t code_sum = 0;
        if (wants_sum) {
          const Code* row = codes.data() + (i - begin) * stride;
          for (int64_t k = 0; k < w.inputs; ++k) code_sum += row[k];
        }
        const int32_t x_sum = code_sum - static_cast<int32_t>(w.inputs) * input.center;
        const float residual = input.residual(i);
        emitter.row(i,
                    ProductSums{products.data() + (i - begin) * padded,
                                w.has_center ? w.center.data() : nullptr, code_sum,
                                w.has_residual ? w.residual.data() : nullptr,
                                static_cast<float>(x_sum) - static_cast<float>(w.inputs) * residual,
                                w.sum.data(), residual, input.scale(i)});
      }
    }
    emitter.finish();
  });
  return emitter.status(QLR_OK);
}

inline int32_t packed_linear(const QlrPacked& x, const QlrPacked& weight,
                             const QlrEpilogue& epilogue, int threads) {
  if (x.axis == QLR_PER_COLUMN || weight.axis == QLR_PER_COLUMN || x.cols > kMaxInputs)
    return QLR_UNSUPPORTED;
  if (x.bits == 8 && weight.bits == 8) return linear_rows<8>(x, weight, epilogue, threads);
  return linear_rows<4>(x, weight, epilogue, threads);
}
