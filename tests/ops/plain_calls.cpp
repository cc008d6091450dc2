// The kernels through their plain C interface, against loops that say what they mean: for processors
// on which the tests in Python do not run. It prints what differs, and how much it compared.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "layout.h"
#include "qlr.h"

namespace {

std::mt19937 rng(0);
int failures = 0, compared = 0;
int32_t isa = QLR_BEST;

float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(rng); }
int whole(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }

void expect(const char* what, int bits, int64_t cols, double ours, double truth, double size) {
  ++compared;
  if (std::fabs(ours - truth) <= 1e-5 * size + 1e-6) return;
  if (++failures < 20)
    std::printf("%s, %d bits, %lld columns: %g, not %g\n", what, bits, static_cast<long long>(cols),
                ours, truth);
}
void require(int32_t status, const char* what) {
  if (status == QLR_OK) return;
  std::printf("%s: status %d\n", what, status);
  std::exit(1);
}

struct Matrix {
  int64_t rows, cols;
  int bits;
  float scale, zero;
  std::vector<uint8_t> codes, packed;

  Matrix(int64_t rows_, int64_t cols_, int bits_, bool extreme = false)
      : rows(rows_), cols(cols_), bits(bits_), scale(real(0.1f, 0.5f)),
        zero(real(0.f, static_cast<float>((1 << bits) - 1))) {
    for (int64_t i = 0; i < rows * cols; ++i)
      codes.push_back(static_cast<uint8_t>(whole(extreme ? (1 << bits) - 1 : 0, (1 << bits) - 1)));
    packed.resize(rows * qlr::Layout(cols, bits).stride + 64);
    require(qlr_pack(codes.data(), rows, cols, bits, packed.data(), 1, isa), "pack");
  }
  QlrPacked view() const {
    return {packed.data(), rows, cols, bits, QLR_PER_TENSOR, &scale, &zero};
  }
  double value(int64_t i, int64_t f) const {
    return double{scale} * (double(codes[i * cols + f]) - double{zero});
  }
};

void codes_of_values(int bits, int64_t cols) {
  const int64_t rows = 5;
  const float scale = 0.3f, zero = 1.f;
  std::vector<float> x(rows * cols), back(rows * cols);
  for (float& value : x) value = real(-3.f, 3.f);
  std::vector<uint8_t> packed(rows * qlr::Layout(cols, bits).stride + 64);
  const QlrQuantizer q{&scale, &zero, QLR_PER_TENSOR, bits, 0, 0.f};
  require(qlr_quantize_pack(x.data(), rows, cols, &q, packed.data(), 1, isa), "quantize");
  const QlrPacked source{packed.data(), rows, cols, bits, QLR_PER_TENSOR, &scale, &zero};
  require(qlr_dequantize(&source, back.data(), 1, isa), "dequantize");
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float code = std::nearbyint(x[i] / scale + zero);
    const float top = static_cast<float>((1 << bits) - 1);
    const float kept = std::fmin(std::fmax(code, 0.f), top);
    expect("quantize and dequantize", bits, cols, back[i], scale * (kept - zero), 3);
  }
}

// `extreme`: all codes and weights are as large as they can be.
void sums(int bits, int64_t cols, bool extreme) {
  const int64_t targets = 7, sources = 9;
  const Matrix x(sources, cols, bits, extreme);
  std::vector<int64_t> rowptr{0};
  for (int64_t i = 0; i < targets; ++i)
    rowptr.push_back(rowptr.back() + (i % 3 == 0 ? 0 : i == 4 ? 600 : whole(1, 9)));
  const int64_t edges = rowptr.back();
  std::vector<int32_t> col;
  std::vector<float> weight;
  std::vector<int8_t> digit;
  for (int64_t e = 0; e < edges; ++e) {
    col.push_back(whole(0, sources - 1));
    weight.push_back(real(-1.f, 1.f));
    digit.push_back(static_cast<int8_t>(extreme ? -128 : whole(-128, 127)));
  }
  for (int kind = 0; kind < 3; ++kind) {  // plain, float weights, integer weights
    QlrGraph graph{rowptr.data(), col.data(), targets, edges,  nullptr,
                   nullptr,       nullptr,    0,       nullptr};
    if (kind == 1) graph.edge_weight = weight.data();
    if (kind == 2) graph.edge_codes = digit.data();
    std::vector<float> out(targets * cols);
    QlrEpilogue epilogue{};
    epilogue.out = out.data();
    const QlrPacked source = x.view();
    require(qlr_packed_spmm(&graph, &source, &epilogue, 1, isa), "spmm");
    for (int64_t i = 0; i < targets; ++i)
      for (int64_t f = 0; f < cols; ++f) {
        double truth = 0, size = 0;
        for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
          const double w = kind == 0 ? 1 : kind == 1 ? double{weight[e]} : double(digit[e]);
          truth += w * x.value(col[e], f);
          size += std::fabs(w) * x.scale * (1 << bits);
        }
        expect(kind == 0   ? "sum"
               : kind == 1 ? "float weights"
                           : "integer weights",
               bits, cols, out[i * cols + f], truth, size);
      }
  }
}

void extrema_and_attention(int bits, int64_t cols, int64_t heads) {
  const int64_t targets = 3, sources = 9;
  const Matrix x(sources, cols * heads, bits);
  const std::vector<int64_t> rowptr{0, 0, 5, 40};
  std::vector<int32_t> col;
  std::vector<float> alpha;
  for (int64_t e = 0; e < rowptr.back(); ++e) {
    col.push_back(whole(0, sources - 1));
    for (int64_t h = 0; h < heads; ++h) alpha.push_back(real(0.f, 1.f));
  }
  const QlrGraph graph{rowptr.data(), col.data(), targets, rowptr.back(), nullptr,
                       nullptr,       nullptr,    0,       nullptr};
  std::vector<float> most(targets * x.cols), out(targets * x.cols);
  QlrEpilogue epilogue{};
  const QlrPacked source = x.view();
  epilogue.out = most.data();
  require(qlr_packed_extremum(&graph, &source, 1, &epilogue, 1, isa), "extremum");
  epilogue.out = out.data();
  require(qlr_packed_attention(&graph, &source, alpha.data(), heads, &epilogue, 1, isa),
          "attention");
  for (int64_t i = 1; i < targets; ++i)
    for (int64_t f = 0; f < x.cols; ++f) {
      double largest = -1e9, sum = 0, size = 0;
      for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
        largest = std::fmax(largest, x.value(col[e], f));
        sum += alpha[e * heads + f / cols] * x.value(col[e], f);
        size += x.scale * (1 << bits);
      }
      expect("maximum", bits, x.cols, most[i * x.cols + f], largest, x.scale * (1 << bits));
      expect("attention", bits, x.cols, out[i * x.cols + f], sum, size);
    }
}

void products(int bits, int weight_bits, int64_t inputs) {
  const int64_t rows = 8, outputs = 37;
  const Matrix x(rows, inputs, bits), w(outputs, inputs, weight_bits);
  std::vector<float> out(rows * outputs), values, at_once(rows * outputs);
  for (int64_t i = 0; i < rows * inputs; ++i)
    values.push_back(static_cast<float>(x.value(i / inputs, i % inputs)));
  QlrEpilogue epilogue{};
  epilogue.out = out.data();
  const QlrPacked a = x.view(), b = w.view();
  require(qlr_packed_linear(&a, &b, &epilogue, 1, isa), "linear");
  const QlrQuantizer grid{&x.scale, &x.zero, QLR_PER_TENSOR, bits, 0, 0.f};
  epilogue.out = at_once.data();
  require(qlr_quantize_linear(values.data(), rows, inputs, &grid, nullptr, &b, &epilogue, 1, isa),
          "linear of floats");
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t o = 0; o < outputs; ++o) {
      double truth = 0, size = 0;
      for (int64_t k = 0; k < inputs; ++k) {
        truth += x.value(i, k) * w.value(o, k);
        size += std::fabs(x.value(i, k) * w.value(o, k));
      }
      expect("product", bits, inputs, out[i * outputs + o], truth, size);
      expect("product of floats", bits, inputs, at_once[i * outputs + o], truth, size);
    }
}

}  // namespace

int main() {
  for (isa = QLR_PORTABLE; isa <= QLR_BEST; ++isa) {
    if (!qlr_has_isa(isa)) continue;
    for (const int bits : {1, 2, 4, 8}) {
      for (const int64_t cols : {1, 16, 33, 40, 64, 129, 300}) {
        codes_of_values(bits, cols);
        sums(bits, cols, false);
        sums(bits, cols, true);
        for (const int weight_bits : {1, 4, 8}) products(bits, weight_bits, cols);
      }
      for (const int64_t heads : {1, 3, 8}) extrema_and_attention(bits, 9, heads);
    }
    std::printf("instruction set %d\n", isa);
  }
  std::printf("%d numbers compared, %d differ\n", compared, failures);
  return failures == 0 ? 0 : 1;
}
