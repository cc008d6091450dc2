// The product of floats with a packed matrix.
#include "ops.h"

namespace qlr {
namespace {

void quantize_linear(Call& call) {
  const View x = call.in.tensor();
  QuantizerArgument how;
  how.scale = call.in.tensor();
  how.zero = call.in.optional();
  how.bits = call.in.integer();
  how.truncate = call.in.flag();
  const bool aligned = call.in.flag();
  how.skew = call.in.optional();
  PackedArgument weight;
  weight.data = call.in.tensor();
  weight.bits = call.in.integer();
  weight.scale = call.in.tensor();
  weight.zero = call.in.tensor();
  EpilogueArgument after;
  after.bias = call.in.optional();
  after.relu = call.in.flag();
  check_matrix(x, torch().floats);
  const int64_t rows = x.sizes[0], cols = x.sizes[1];
  check_columns(cols);
  weight.cols = cols;
  check_packed(weight);
  check_epilogue(after, rows, weight.rows());

  const QlrPacked factor = call.prepared.packed(weight);
  const float* const values = call.prepared.floats(x);
  Output to;
  const auto answer = [&](const QlrQuantizer* grid, const QlrRowQuantizer* own) {
    call.results[0] = call.prepared.output(after, rows, weight.rows(), to);
    answered(qlr_quantize_linear(values, rows, cols, grid, own, &factor, &to.epilogue, call.threads,
                                 call.isa),
             "an input with several given ranges, a weight with a range per column, or over 32,768 "
             "columns");
  };
  if (how.zero) {
    check_quantizer(how, rows, cols);
    const QlrQuantizer grid = call.prepared.quantizer(how, rows);
    answer(&grid, nullptr);
  } else {
    check_row_quantizer(how);
    const QlrRowQuantizer own = call.prepared.row_quantizer(how, aligned);
    answer(nullptr, &own);
  }
}

const Kernel<quantize_linear> kQuantizeLinear("quantize_linear", Gradient::kRefused);

}  // namespace
}  // namespace qlr
