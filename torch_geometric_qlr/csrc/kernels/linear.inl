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
  // `x_center` is the integer near the zero point of the input.
  LinearWeight(const QlrPacked& w, int32_t x_center)
      : inputs(w.cols), outputs(w.rows), panels(w.cols, w.rows), sum(panels.padded),
        center(panels.padded), residual(panels.padded) {
    const Layout layout(w.cols, w.bits);
    Scratch<uint8_t> codes(layout.padded_cols());
    Scratch<Weight> row(panels.inputs());
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
      }
      panels.set(o, row.data());
      center[o] = near - shift;
      sum[o] = total - center[o] * static_cast<int32_t>(inputs);
      panels.start[o] = -x_center * sum[o];
      residual[o] = zero - static_cast<float>(near);
      has_center |= center[o] != 0;
      has_residual |= residual[o] != 0.f;
    }
  }

  int64_t inputs, outputs;
  Panels<Weight> panels;
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
  // Codes of a row, zero past the last. `room` holds them while they are bytes.
  template <typename Code>
  void load(int64_t row, Code* codes, uint8_t* room) const {
    uint8_t* const bytes = sizeof(Code) == 1 ? reinterpret_cast<uint8_t*>(codes) : room;
    unpack_row(x.data + row * layout.stride, layout, bytes);
    std::memset(bytes + x.cols, 0, layout.padded_cols() - x.cols);
    if (sizeof(Code) > 1) std::copy_n(bytes, layout.padded_cols(), codes);
  }
};

// The integer products of a row as the epilogue reads them.
template <typename Weight>
struct ProductSums {
  const int32_t* products;
  const LinearWeight<Weight>& w;
  int32_t center;  // of x
  int32_t x_sum;   // of (c_x - center), if the weights have a center or a residual
  float residual;  // of x
  bool has_residual;
  float scale;  // of x
  static constexpr float rest = 0.f;

  F::vf scale_of(F::vf column_scale) const { return F::mul(column_scale, F::set1(scale)); }
  F::vf at(int64_t o) const {
    F::vi p = F::load_int(products + o);
    if (w.has_center) {
      // The panel's bytes miss `center` of the weights, on every input.
      const F::vi codes = F::set1_int(x_sum + static_cast<int32_t>(w.inputs) * center);
      p = F::sub_int(p, F::mul_int(F::load_int(w.center.data() + o), codes));
    }
    F::vf y = F::to_float(p);
    if (w.has_residual) {
      const float rest = static_cast<float>(x_sum) - static_cast<float>(w.inputs) * residual;
      y = F::fnma(F::load(w.residual.data() + o), F::set1(rest), y);
    }
    if (!has_residual) return y;
    return F::fnma(F::to_float(F::load_int(w.sum.data() + o)), F::set1(residual), y);
  }
};

template <int B>
inline int32_t linear_rows(const QlrPacked& x, const QlrPacked& weight, const QlrEpilogue& epilogue,
                           int threads) {
  using Code = Dot::Code<B>;
  using Weight = Dot::Weight<B>;
  const LinearInput input(x);
  const LinearWeight<Weight> w(weight, input.center);
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
    Scratch<Code> codes(kBlockRows * stride + 64);
    Scratch<uint8_t> bytes(stride);
    Scratch<int32_t> products(kBlockRows * padded);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlockRows, end = std::min(begin + kBlockRows, x.rows);
      for (int64_t i = begin; i < end; ++i)
        input.load(i, codes.data() + (i - begin) * stride, bytes.data());
      multiply.template run<B>(codes.data(), stride, w.panels, products.data());
      for (int64_t i = begin; i < end; ++i) {
        int32_t x_sum = 0;
        if (wants_sum) {
          const Code* row = codes.data() + (i - begin) * stride;
          for (int64_t k = 0; k < w.inputs; ++k) x_sum += row[k];
          x_sum -= static_cast<int32_t>(w.inputs) * input.center;
        }
        emitter.row(
            i, ProductSums<Weight>{products.data() + (i - begin) * padded, w, input.center, x_sum,
                                   input.residual(i), input.residual(i) != 0.f, input.scale(i)});
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
