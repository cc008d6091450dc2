#include "arguments.h"

#include <cstring>

#include "../layout.h"

namespace qlr {
namespace {

// Columns are numbered with 32 bits, with room for what is computed of the numbers.
constexpr int64_t kMaxColumns = (int64_t{1} << 31) - (1 << 16);

bool is_single(const View& param) { return param.numel == 1 && param.dim <= 2; }

}  // namespace

double Arguments::number() {
  const Value bits = next('f');
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

std::string_view Arguments::word() {
  const Text text = reinterpret_cast<Text>(next('s'));
  const char* data = nullptr;
  size_t length = 0;
  torch_did(torch().torch_string_c_str(text, &data));
  torch_did(torch().torch_string_length(text, &length));
  return {data, length};
}

PackedArgument read_packed(Arguments& in) {
  PackedArgument packed;
  packed.data = in.tensor();
  packed.cols = in.integer();
  packed.bits = in.integer();
  packed.scale = in.tensor();
  packed.zero = in.tensor();
  return packed;
}

GraphArgument read_graph(Arguments& in) {
  GraphArgument graph;
  graph.rowptr = in.tensor();
  graph.col = in.tensor();
  return graph;
}

QuantizerArgument read_quantizer(Arguments& in) {
  QuantizerArgument quantizer;
  quantizer.scale = in.tensor();
  quantizer.zero = in.tensor();
  quantizer.bits = in.integer();
  quantizer.truncate = in.flag();
  quantizer.skew = in.optional();
  return quantizer;
}

QuantizerArgument read_output(Arguments& in) {
  QuantizerArgument output;
  output.scale = in.optional();
  output.zero = in.optional();
  output.bits = in.integer();
  output.truncate = in.flag();
  output.skew = in.optional();
  return output;
}

void check_matrix(const View& x, uint64_t dtypes) { require(x.is_of(dtypes) && x.dim == 2); }

void check_columns(int64_t cols) { require(0 <= cols && cols <= kMaxColumns); }

void check_width(int64_t bits) { require(1 <= bits && bits <= 8); }

void check_storage_width(int64_t bits) {
  require(bits == 1 || bits == 2 || bits == 4 || bits == 8);
}

void check_params(const View& scale, const View& zero, int64_t rows, int64_t cols) {
  for (const View* param : {&scale, &zero}) {
    require(param->is_of(torch().floats));
    require(is_single(*param) || param->is_matrix(rows, 1) || param->is_matrix(1, cols));
  }
  require(scale.numel == 1 || zero.numel == 1 || scale.has_shape_of(zero));
}

void check_numbers(const View& x, int64_t count) {
  if (x) require(x.is_of(torch().numbers) && x.numel == count);
}

void check_packed(const PackedArgument& packed) {
  check_columns(packed.cols);
  check_storage_width(packed.bits);
  check_matrix(packed.data, uint64_t{1} << torch().uint8);
  require(packed.data.sizes[1] == Layout(packed.cols, static_cast<int>(packed.bits)).stride);
  if (packed.scale) check_params(packed.scale, packed.zero, packed.rows(), packed.cols);
}

void check_quantizer(const QuantizerArgument& quantizer, int64_t rows, int64_t cols) {
  check_width(quantizer.bits);
  check_params(quantizer.scale, quantizer.zero, rows, cols);
  check_numbers(quantizer.skew, 1);
}

void check_row_quantizer(const QuantizerArgument& quantizer) {
  check_width(quantizer.bits);
  require(quantizer.scale.is_of(torch().floats) && quantizer.scale.numel == 1);
  check_numbers(quantizer.skew, 1);
}

void check_graph(const GraphArgument& graph, int64_t sources) {
  require(graph.rowptr.is_of(torch().indices) && graph.col.is_of(torch().indices));
  require(graph.rowptr.dim == 1 && graph.rowptr.numel > 0 && graph.col.dim == 1);
  check_numbers(graph.edge_weight, graph.edges());
  check_numbers(graph.source_weight, sources);
}

void check_epilogue(const EpilogueArgument& epilogue, int64_t rows, int64_t cols) {
  check_numbers(epilogue.row_scale, rows);
  check_numbers(epilogue.bias, cols);
  check_numbers(epilogue.addend, epilogue.addend.numel);
  if (epilogue.addend) require(epilogue.addend.is_matrix(rows, cols));
  if (!epilogue.output.scale) return;
  require(static_cast<bool>(epilogue.output.zero));
  check_quantizer(epilogue.output, rows, cols);
}

void check_steps(const QuantizerArgument& steps) {
  check_width(steps.bits);
  require(steps.scale.dim == 1);
  for (const View* vector : {&steps.scale, &steps.zero, &steps.skew})
    if (*vector) require(vector->is_of(torch().floats) && vector->has_shape_of(steps.scale));
}

}  // namespace qlr
