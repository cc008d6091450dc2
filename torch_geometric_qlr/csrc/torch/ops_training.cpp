// Fake quantization, with a range that is given and with one that learns.
#include "ops.h"

namespace qlr {
namespace {

struct Shape {
  int64_t rows, cols;
};

// Rows and columns of a contiguous tensor; any split serves a scale per tensor.
Shape as_matrix(const View& x) {
  return x.dim == 2 ? Shape{x.sizes[0], x.sizes[1]} : Shape{1, x.numel};
}

bool suits(int64_t axis, const View& x) {
  return axis == -1 || ((axis == 0 || axis == 1) && x.dim == 2);
}

// One number per tensor (-1), row (0) or column (1), in the shape in which it meets a matrix.
struct Groups {
  int64_t dim, sizes[2];
  Groups(int64_t axis, const Shape& x)
      : dim(axis == -1 ? 0 : 2), sizes{axis == 0 ? x.rows : 1, axis == 1 ? x.cols : 1} {}
  int64_t count() const { return sizes[0] * sizes[1]; }
};

float* new_floats(Owned& result, int64_t dim, const int64_t* sizes) {
  result = empty(dim, sizes, torch().float32);
  return static_cast<float*>(address(result.get()));
}

uint8_t* new_mask(Owned& result, const View& x) {
  result = empty(x.dim, x.sizes, torch().boolean);
  return static_cast<uint8_t*>(address(result.get()));
}

// What both backward ops begin with.
struct Backward {
  View grad, x, x_hat, mask;

  explicit Backward(Arguments& in)
      : grad(in.tensor()), x(in.tensor()), x_hat(in.tensor()), mask(in.tensor()) {}

  // Afterwards the types of the values are all that a kernel might not take.
  void check() const {
    for (const View* values : {&grad, &x, &x_hat})
      require(values->is_of(torch().floats) && values->has_shape_of(x));
    require(mask.dtype == torch().boolean && mask.has_shape_of(x));
  }
  // The gradient of the values, and one sum per group.
  void answer(Call& call, int64_t axis, float* reduced) const {
    for (const View* values : {&grad, &x, &x_hat})
      if (values->dtype != torch().float32) throw Refusal{QLR_UNSUPPORTED, ""};
    const auto [rows, cols] = as_matrix(x);
    float* const grad_x = new_floats(call.results[0], x.dim, x.sizes);
    const auto* const passed = static_cast<const uint8_t*>(call.prepared.as(mask, torch().boolean));
    answered(qlr_fake_quantize_backward(
        call.prepared.floats(grad), call.prepared.floats(x), call.prepared.floats(x_hat), passed,
        rows, cols, static_cast<int32_t>(axis), grad_x, reduced, call.threads, call.isa));
  }
};

void fake_quantize(Call& call) {
  const View x = call.in.tensor();
  const QuantizerArgument how = read_quantizer(call.in);
  require(x.is_of(torch().floats));
  const auto [rows, cols] = as_matrix(x);
  // A range per row or column is one of a matrix.
  if (x.dim != 2) require(how.scale.numel == 1 && how.zero.numel == 1);
  check_quantizer(how, x.dim == 2 ? rows : 1, x.dim == 2 ? cols : 1);
  if (x.dtype != torch().float32) throw Refusal{QLR_UNSUPPORTED, ""};

  const QlrQuantizer quantizer = call.prepared.quantizer(how, rows);
  float* const x_hat = new_floats(call.results[0], x.dim, x.sizes);
  uint8_t* const mask = new_mask(call.results[1], x);
  answered(qlr_fake_quantize(call.prepared.floats(x), rows, cols, &quantizer, x_hat, mask,
                             call.threads, call.isa));
}

void fake_quantize_backward(Call& call) {
  const Backward backward(call.in);
  const int64_t axis = call.in.integer();
  backward.check();
  require(suits(axis, backward.x));

  const Groups groups(axis, as_matrix(backward.x));
  float* const reduced = new_floats(call.results[1], groups.dim, groups.sizes);
  backward.answer(call, axis, reduced);
}

void observed_quantize(Call& call) {
  const View x = call.in.tensor(), gamma = call.in.tensor();
  const View lo = call.in.optional(), hi = call.in.optional();
  const int64_t axis = call.in.integer(), bits = call.in.integer();
  const bool truncate = call.in.flag(), aligned = call.in.flag();
  const double momentum = call.in.number(), factor = call.in.number();
  require(x.is_of(torch().floats) && suits(axis, x));
  check_width(bits);
  const Shape shape = as_matrix(x);
  const Groups groups(axis, shape);
  const int64_t count = groups.count();
  require(gamma.is_of(torch().floats) && (gamma.numel == 1 || gamma.numel == count));
  require(static_cast<bool>(lo) == static_cast<bool>(hi));
  for (const View* end : {&lo, &hi})
    if (*end) require(end->is_of(torch().floats) && end->numel == count);
  if (x.dtype != torch().float32) throw Refusal{QLR_UNSUPPORTED, ""};

  const QlrObserver by{static_cast<int32_t>(axis),
                       static_cast<int32_t>(bits),
                       truncate,
                       aligned,
                       call.prepared.floats(lo),
                       call.prepared.floats(hi),
                       call.prepared.floats(gamma),
                       gamma.numel,
                       static_cast<float>(momentum),
                       static_cast<float>(factor)};
  QlrObserved out;
  out.x_hat = new_floats(call.results[0], x.dim, x.sizes);
  out.mask = new_mask(call.results[1], x);
  float** const numbers[] = {&out.scale, &out.zero, &out.own_scale, &out.lo, &out.hi};
  for (size_t i = 0; i < std::size(numbers); ++i)
    *numbers[i] = new_floats(call.results[2 + i], groups.dim, groups.sizes);
  answered(qlr_observed_quantize(call.prepared.floats(x), shape.rows, shape.cols, &by, &out,
                                 call.threads, call.isa));
}

void observed_quantize_backward(Call& call) {
  const Backward backward(call.in);
  const View scale = call.in.tensor(), own_scale = call.in.tensor();
  const double factor = call.in.number();
  backward.check();
  const auto [rows, cols] = as_matrix(backward.x);
  const bool matrix = backward.x.dim == 2;
  if (!matrix) require(scale.numel == 1);
  check_params(scale, own_scale, matrix ? rows : 1, matrix ? cols : 1);
  require(scale.has_shape_of(own_scale));

  const int64_t axis = scale.numel == 1 ? -1 : scale.is_matrix(rows, 1) ? 0 : 1;
  const float* const s = call.prepared.floats(scale);
  const float* const s0 = call.prepared.floats(own_scale);
  float* const grad_gamma = new_floats(call.results[1], scale.dim, scale.sizes);
  backward.answer(call, axis, grad_gamma);
  for (int64_t k = 0; k < scale.numel; ++k)
    grad_gamma[k] = grad_gamma[k] / s[k] * s0[k] * static_cast<float>(factor);
}

const Kernel<fake_quantize> kFakeQuantize("fake_quantize", Gradient::kNone);
const Kernel<fake_quantize_backward> kFakeQuantizeBackward("fake_quantize_backward",
                                                           Gradient::kNone);
const Kernel<observed_quantize> kObservedQuantize("observed_quantize", Gradient::kRefused);
const Kernel<observed_quantize_backward> kObservedQuantizeBackward("observed_quantize_backward",
                                                                   Gradient::kRefused);

}  // namespace
}  // namespace qlr
