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
      // Of 8 bits only 128 leaves signed bytes for sure, and nothing is taken from unsigned ones; what
      // is missing to the integer comes later.
      const int32_t shift = std::is_unsigned<Weight>::value      ? 0
                            : sizeof(Weight) == 1 && w.bits == 8 ? 128
                                                                 : near;
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

// The integer products of a row as the epilogue reads them. PLAIN: the weights are in the panels as they
// are, but for what `w_sum` has.
template <bool PLAIN>
struct ProductSums {
  const int32_t* products;
  const int32_t* center;    // of the weights, see LinearWeight
  int32_t code_sum;         // of c_x
  const float* w_residual;  // of the weights
  float x_rest;             // of the input: the sum of c_x - Z_x
  const int32_t* w_sum;     // of the weights
  float x_residual;         // of the input
  float scale;              // of the input
  static constexpr float rest = 0.f;

  F::vf scale_of(F::vf column_scale) const { return F::mul(column_scale, F::set1(scale)); }
  QLR_ALWAYS_INLINE F::vf at(int64_t o) const {
    F::vi p = F::load_int(products + o);
    // The panel's bytes miss `center` of the weights, on every input.
    if constexpr (!PLAIN)
      p = F::sub_int(p, F::mul_int(F::load_int(center + o), F::set1_int(code_sum)));
    F::vf y = F::to_float(p);
    if constexpr (!PLAIN) y = F::fnma(F::load(w_residual + o), F::set1(x_rest), y);
    return F::fnma(F::to_float(F::load_int(w_sum + o)), F::set1(x_residual), y);
  }
  QLR_ALWAYS_INLINE F::vf simple_at(int64_t o, const float*) const { return at(o); }
};

// Rows come from an Input, see linear_inputs.inl.
template <int B, typename Input>
inline int32_t linear_rows(const Input& input, const QlrPacked& weight, const QlrEpilogue& epilogue,
                           int threads) {
  using Code = Dot::Code<B>;
  using Weight = Dot::Weight<B>;
  const LinearWeight<Weight> w(weight, input.center, (1 << input.bits) - 1);
  // To the epilogue the outputs are columns, with the scale of the weights.
  Scratch<float> zeros(w.outputs);
  const int32_t axis = weight.axis == QLR_PER_ROW ? QLR_PER_COLUMN : QLR_PER_TENSOR;
  const QlrPacked columns{nullptr, 0, w.outputs, 1, axis, weight.scale, zeros.data()};
  const Emitter emitter(w.outputs, input.rows, &columns, epilogue);
  constexpr int64_t kBlockRows = Products::kBlockRows;
  const int64_t stride = std::max(input.layout.padded_cols(), w.panels.inputs());
  const int64_t padded = w.panels.padded, blocks = (input.rows + kBlockRows - 1) / kBlockRows;
  const bool wants_sum = w.has_center || w.has_residual;
  std::atomic<bool> finite{true};
  parallel_rows(blocks, kBlockRows * w.inputs * w.outputs / 16, threads,
                [&](int64_t first, int64_t last) {
    const Products multiply;
    typename Input::Reader reader(input, std::min(last * kBlockRows, input.rows));
    SparseRows<B> sparse(w.panels, w.values.data());
    Scratch<Code> codes(kBlockRows * stride + 64);
    Scratch<int32_t> products(kBlockRows * padded);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlockRows, end = std::min(begin + kBlockRows, input.rows);
      const int count = static_cast<int>(end - begin);
      reader.begin(begin);
      for (int r = 0; r < count; ++r) reader.load(r, codes.data() + r * stride);
      const auto zero_code = [&](int r) {
        return near_zero_point(reader.zero(r), (1 << input.bits) - 1);
      };
      if (sparse.suit(codes.data(), stride, count, zero_code))
        sparse.run(codes.data(), stride, count, products.data());
      else multiply.template run<B>(codes.data(), stride, w.panels, products.data());
      for (int r = 0; r < count; ++r) {
        int32_t code_sum = 0;
        if (wants_sum) {
          const Code* row = codes.data() + r * stride;
          for (int64_t k = 0; k < w.inputs; ++k) code_sum += row[k];
        }
        const int32_t x_sum = code_sum - static_cast<int32_t>(w.inputs) * input.center;
        const float residual = reader.zero(r) - static_cast<float>(input.center);
        const auto emit = [&](auto plain) {
          emitter.row(
              begin + r,
              ProductSums<decltype(plain)::value>{
                  products.data() + r * padded, w.center.data(), code_sum, w.residual.data(),
                  static_cast<float>(x_sum) - static_cast<float>(w.inputs) * residual, w.sum.data(),
                  residual, reader.scale(r)});
        };
        if (wants_sum) emit(std::false_type());
        else emit(std::true_type());
      }
    }
    if (!reader.finite()) finite.store(false, std::memory_order_relaxed);
    emitter.finish();
  });
  return emitter.status(finite.load() ? QLR_OK : QLR_NOT_FINITE);
}

template <typename Input>
inline int32_t linear_rows(const Input& input, const QlrPacked& weight, const QlrEpilogue& epilogue,
                           int threads) {
  if (input.bits == 8 && weight.bits == 8) return linear_rows<8>(input, weight, epilogue, threads);
  return linear_rows<4>(input, weight, epilogue, threads);
}

inline int32_t packed_linear(const QlrPacked& x, const QlrPacked& weight,
                             const QlrEpilogue& epilogue, int threads) {
  if (x.axis == QLR_PER_COLUMN || weight.axis == QLR_PER_COLUMN || x.cols > kMaxInputs)
    return QLR_UNSUPPORTED;
  return linear_rows(PackedInput(x), weight, epilogue, threads);
}

// Of floats, which become codes on the way: by `grid`, which is one for all, or by `own`, each row by
// its range.
inline int32_t quantize_linear(const float* x, int64_t rows, int64_t cols, const QlrQuantizer* grid,
                               const QlrRowQuantizer* own, const QlrPacked& weight,
                               const QlrEpilogue& epilogue, int threads) {
  const bool single = grid == nullptr || grid->axis == QLR_PER_TENSOR;
  if (!single || weight.axis == QLR_PER_COLUMN || cols > kMaxInputs) return QLR_UNSUPPORTED;
  float scale, zero;
  QlrQuantizer of_row;
  if (grid == nullptr && rows == 1) {  // one range is one grid, to packed_linear as well
    RowRange(*own).of(x, cols, scale, zero);
    of_row = {&scale, &zero, QLR_PER_TENSOR, own->bits, own->truncate, own->skew};
    grid = &of_row;
  }
  if (grid != nullptr) {
    const GridPacker packer(*grid, rows, cols);
    const int32_t bits = storage_bits(grid->bits);
    const int32_t center = near_zero_point(packer.zero(), (1 << bits) - 1);
    return linear_rows(FloatInput<GridPacker>(x, rows, cols, bits, center, packer), weight,
                       epilogue, threads);
  }
  const OwnRowPacker packer(*own, cols);
  const int32_t bits = storage_bits(own->bits);
  return linear_rows(FloatInput<OwnRowPacker>(x, rows, cols, bits, middle_code(bits), packer),
                     weight, epilogue, threads);
}
