// y = x w^T for packed x and packed w, exact in int32, affine in both.
//
// Weights are unpacked once per call into panels of Dot::W outputs, four inputs side by side, as
// signed bytes (codes of 8 bits minus 128). Rows of x are unpacked kBlockRows at a time and stay in
// the first cache. Both zero points are split into an integer, subtracted exactly, and a rest of
// at most one half, which meets floating point.

constexpr int kBlockRows = 6;
constexpr int kPanels = F::W == 16 ? 4 : F::W == 8 ? 2 : 4;  // accumulators: rows times panels
constexpr int64_t kMaxInputs = 1 << 15;                      // 255 * 255 * 2^15 < 2^31

class LinearWeight {
 public:
  LinearWeight(const QlrPacked& w)
      : inputs(w.cols), outputs(w.rows), groups((w.cols + 3) / 4),
        padded((w.rows + Dot::W * kPanels - 1) / (Dot::W * kPanels) * (Dot::W * kPanels)),
        panels(padded * groups * 4), sum(padded), center(padded), residual(padded) {
    const Layout layout(w.cols, w.bits);
    const int offset = w.bits == 8 ? 128 : 0;
    Scratch<uint8_t> codes(layout.padded_cols());
    for (int64_t o = 0; o < outputs; ++o) {
      unpack_row(w.data + o * layout.stride, layout, codes.data());
      int8_t* panel = panels.data() + o / Dot::W * groups * Dot::W * 4 + o % Dot::W * 4;
      int32_t total = 0;
      for (int64_t k = 0; k < inputs; ++k) {
        const int value = codes[k] - offset;
        panel[k / 4 * Dot::W * 4 + k % 4] = static_cast<int8_t>(value);
        total += value;
      }
      const float zero = w.zero[w.axis == QLR_PER_ROW ? o : 0];
      const float top = static_cast<float>((1 << w.bits) - 1);
      const int32_t near = static_cast<int32_t>(std::nearbyint(std::min(std::max(zero, 0.f), top)));
      sum[o] = total;
      center[o] = near - offset;
      residual[o] = zero - static_cast<float>(near);
    }
  }
  const int8_t* panel(int64_t p) const { return panels.data() + p * groups * Dot::W * 4; }

  int64_t inputs, outputs, groups, padded;
  Scratch<int8_t> panels;
  Scratch<int32_t> sum, center;
  Scratch<float> residual;
};

// kBlockRows rows times kPanels panels; B is 8 if both operands may need all of 8 bits.
template <int B>
inline void multiply(const uint8_t* x, int64_t stride, const LinearWeight& w, int64_t first,
                     int32_t* out) {
  Dot::v acc[kBlockRows][kPanels];
  for (int r = 0; r < kBlockRows; ++r)
    for (int p = 0; p < kPanels; ++p) acc[r][p] = Dot::zero();
  const int8_t* panel[kPanels];
  for (int p = 0; p < kPanels; ++p) panel[p] = w.panel(first + p);
  for (int64_t g = 0; g < w.groups; ++g) {
    Dot::v b[kPanels];
    for (int p = 0; p < kPanels; ++p) b[p] = Dot::load(panel[p] + g * Dot::W * 4);
    for (int r = 0; r < kBlockRows; ++r) {
      const Dot::v a = Dot::repeat4(x + r * stride + 4 * g);
      for (int p = 0; p < kPanels; ++p) acc[r][p] = Dot::template dot<B>(acc[r][p], a, b[p]);
    }
  }
  for (int r = 0; r < kBlockRows; ++r)
    for (int p = 0; p < kPanels; ++p)
      Dot::store(out + r * w.padded + (first + p) * Dot::W, acc[r][p]);
}

struct LinearInput {
  const QlrPacked& x;
  Layout layout;
  int32_t center;

  LinearInput(const QlrPacked& packed) : x(packed), layout(packed.cols, packed.bits) {
    const float top = static_cast<float>((1 << x.bits) - 1);
    const float zero = x.axis == QLR_PER_TENSOR ? x.zero[0] : 0.5f * (top + 1);
    center = static_cast<int32_t>(std::nearbyint(std::min(std::max(zero, 0.f), top)));
  }
  float scale(int64_t row) const { return x.scale[x.axis == QLR_PER_ROW ? row : 0]; }
  float residual(int64_t row) const {
    return x.zero[x.axis == QLR_PER_ROW ? row : 0] - static_cast<float>(center);
  }
  // Codes of a row, zero past the last; returns their sum.
  int32_t load(int64_t row, uint8_t* codes) const {
    unpack_row(x.data + row * layout.stride, layout, codes);
    std::memset(codes + x.cols, 0, layout.padded_cols() - x.cols);
    int32_t total = 0;
    for (int64_t k = 0; k < x.cols; ++k) total += codes[k];
    return total;
  }
};

// The integer products of a row to sums over (c_x - Z_x) (c_w - Z_w), in place of `sums`.
inline void center_products(const int32_t* products, const LinearWeight& w, int32_t code_sum,
                            int32_t center, float residual, float* sums) {
  const int32_t inputs = static_cast<int32_t>(w.inputs);
  const int32_t x_sum = code_sum - inputs * center;  // of c_x - center
  const F::vf by_weight = F::set1(static_cast<float>(x_sum) - static_cast<float>(inputs) * residual);
  for (int64_t o = 0; o < w.outputs; o += F::W) {
    const F::vi w_center = F::load_int(w.center.data() + o), w_sum = F::load_int(w.sum.data() + o);
    F::vi p = F::load_int(products + o);
    p = F::sub_int(p, F::mul_int(w_center, F::set1_int(x_sum)));
    p = F::sub_int(p, F::mul_int(w_sum, F::set1_int(center)));
    F::vf y = F::to_float(p);
    y = F::fnma(F::load(w.residual.data() + o), by_weight, y);
    const F::vi rest = F::sub_int(w_sum, F::mul_int(w_center, F::set1_int(inputs)));
    F::store(sums + o, F::fnma(F::to_float(rest), F::set1(residual), y));
  }
}

template <int B>
inline int32_t linear_rows(const QlrPacked& x, const QlrPacked& weight,
                           const QlrEpilogue& epilogue, int threads) {
  const LinearWeight w(weight);
  const LinearInput input(x);
  // To the epilogue the outputs are columns, with the scale of the weights.
  Scratch<float> zeros(w.outputs);
  const int32_t axis = weight.axis == QLR_PER_ROW ? QLR_PER_COLUMN : QLR_PER_TENSOR;
  const QlrPacked columns{nullptr, 0, w.outputs, 1, axis, weight.scale, zeros.data()};
  const Emitter emitter(w.outputs, &columns, epilogue);
  const int64_t stride = input.layout.padded_cols();
  const int64_t blocks = (x.rows + kBlockRows - 1) / kBlockRows;
  parallel_rows(blocks, kBlockRows * w.inputs * w.outputs / 16, threads,
                [&](int64_t first, int64_t last) {
    Scratch<uint8_t> codes(kBlockRows * stride + 64);
    Scratch<int32_t> products(kBlockRows * w.padded);
    Scratch<float> sums(emitter.padded() + w.padded);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlockRows, end = std::min(begin + kBlockRows, x.rows);
      int32_t code_sum[kBlockRows];
      for (int64_t i = begin; i < end; ++i)
        code_sum[i - begin] = input.load(i, codes.data() + (i - begin) * stride);
      for (int64_t p = 0; p < w.padded / Dot::W; p += kPanels)
        multiply<B>(codes.data(), stride, w, p, products.data());
      for (int64_t i = begin; i < end; ++i) {
        center_products(products.data() + (i - begin) * w.padded, w, code_sum[i - begin],
                        input.center, input.residual(i), sums.data());
        emitter.row(i, RowSums<float>{sums.data(), 0, 0.f, 0.f, input.scale(i)});
      }
    }
  });
  return QLR_OK;
}

inline int32_t packed_linear(const QlrPacked& x, const QlrPacked& weight,
                             const QlrEpilogue& epilogue, int threads) {
  if (x.axis == QLR_PER_COLUMN || weight.axis == QLR_PER_COLUMN || x.cols > kMaxInputs)
    return QLR_UNSUPPORTED;
  if (x.bits == 8 && weight.bits == 8) return linear_rows<8>(x, weight, epilogue, threads);
  return linear_rows<4>(x, weight, epilogue, threads);
}
