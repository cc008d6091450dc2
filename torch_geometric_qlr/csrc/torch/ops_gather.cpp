// Sums and extrema along the edges of a graph, and the product of two packed matrices.
#include "ops.h"

namespace qlr {
namespace {

bool read_mean(Arguments& in) {
  const std::string_view reduce = in.word();
  require(reduce == "sum" || reduce == "mean");
  return reduce == "mean";
}

// edge_weight, source_weight, row_scale, bias, addend, addend_scale, reduce, relu
EpilogueArgument read_weights_and_epilogue(Arguments& in, GraphArgument& graph) {
  EpilogueArgument epilogue;
  graph.edge_weight = in.optional();
  graph.source_weight = in.optional();
  epilogue.row_scale = in.optional();
  epilogue.bias = in.optional();
  epilogue.addend = in.optional();
  epilogue.addend_scale = in.number();
  epilogue.mean = read_mean(in);
  epilogue.relu = in.flag();
  return epilogue;
}

// bias, relu and the output quantizer
EpilogueArgument read_short_epilogue(Arguments& in) {
  EpilogueArgument epilogue;
  epilogue.bias = in.optional();
  epilogue.relu = in.flag();
  epilogue.output = read_output(in);
  return epilogue;
}

// A scale per source row is a source weight. A weight in double precision is multiplied as such, as
// torch would.
const float* joined_weight(Call& call, const QlrPacked& source, const View& weight) {
  if (!weight) return source.scale;
  float* const joined = call.prepared.room<float>(source.rows);
  if (weight.dtype == torch().float64) {
    const auto* const w = static_cast<const double*>(call.prepared.as(weight, torch().float64));
    for (int64_t i = 0; i < source.rows; ++i)
      joined[i] = static_cast<float>(static_cast<double>(source.scale[i]) * w[i]);
  } else {
    const float* const w = call.prepared.floats(weight);
    for (int64_t i = 0; i < source.rows; ++i) joined[i] = source.scale[i] * w[i];
  }
  return joined;
}

void packed_spmm(Call& call) {
  GraphArgument edges = read_graph(call.in);
  const PackedArgument packed = read_packed(call.in);
  EpilogueArgument after = read_weights_and_epilogue(call.in, edges);
  after.output = read_output(call.in);
  check_packed(packed);
  check_graph(edges, packed.rows());
  check_epilogue(after, edges.rows(), packed.cols);

  const QlrPacked source = call.prepared.packed(packed);
  // Integer sums take no weights of sources, such as scales of their own; a scale of 1 is none.
  const bool scaled = source.axis == QLR_PER_ROW &&
                      (packed.scale.numel != 1 || *call.prepared.floats(packed.scale) != 1.f);
  QlrGraph graph = scaled || edges.source_weight ? call.prepared.graph(edges, packed.rows())
                                                 : call.prepared.coded_graph(edges, packed.rows());
  if (source.axis == QLR_PER_ROW && graph.edge_codes == nullptr)
    graph.source_weight = joined_weight(call, source, edges.source_weight);
  Output to;
  call.results[0] = call.prepared.output(after, edges.rows(), packed.cols, to);
  answered(qlr_packed_spmm(&graph, &source, &to.epilogue, call.threads, call.isa));
}

void packed_extremum(Call& call) {
  const GraphArgument edges = read_graph(call.in);
  const PackedArgument packed = read_packed(call.in);
  const bool largest = call.in.flag();
  check_packed(packed);
  check_graph(edges, packed.rows());

  const QlrPacked source = call.prepared.packed(packed);
  const QlrGraph graph = call.prepared.graph(edges, packed.rows());
  Output to;
  call.results[0] = call.prepared.output({}, edges.rows(), packed.cols, to);
  answered(qlr_packed_extremum(&graph, &source, largest, &to.epilogue, call.threads, call.isa),
           "source rows with a range of their own each, whose codes do not compare");
}

void packed_attention(Call& call) {
  const GraphArgument edges = read_graph(call.in);
  const PackedArgument packed = read_packed(call.in);
  const View alpha = call.in.tensor();
  const EpilogueArgument after = read_short_epilogue(call.in);
  check_packed(packed);
  check_graph(edges, packed.rows());
  check_epilogue(after, edges.rows(), packed.cols);
  check_matrix(alpha, torch().numbers);
  const int64_t heads = alpha.sizes[1];
  require(alpha.sizes[0] == edges.edges() && heads > 0 && packed.cols % heads == 0);

  const QlrPacked source = call.prepared.packed(packed);
  const QlrGraph graph = call.prepared.graph(edges, packed.rows());
  Output to;
  call.results[0] = call.prepared.output(after, edges.rows(), packed.cols, to);
  answered(qlr_packed_attention(&graph, &source, call.prepared.floats(alpha), heads, &to.epilogue,
                                call.threads, call.isa));
}

void packed_linear(Call& call) {
  const PackedArgument packed = read_packed(call.in);
  PackedArgument weight;
  weight.data = call.in.tensor();
  weight.cols = packed.cols;
  weight.bits = call.in.integer();
  weight.scale = call.in.tensor();
  weight.zero = call.in.tensor();
  const EpilogueArgument after = read_short_epilogue(call.in);
  check_packed(packed);
  check_packed(weight);
  check_epilogue(after, packed.rows(), weight.rows());

  const QlrPacked source = call.prepared.packed(packed);
  const QlrPacked factor = call.prepared.packed(weight);
  Output to;
  call.results[0] = call.prepared.output(after, packed.rows(), weight.rows(), to);
  answered(qlr_packed_linear(&source, &factor, &to.epilogue, call.threads, call.isa),
           "an input or a weight with a range per column, or over 32,768 columns");
}

void spmm(Call& call) {
  GraphArgument edges = read_graph(call.in);
  const View x = call.in.tensor();
  const EpilogueArgument after = read_weights_and_epilogue(call.in, edges);
  check_matrix(x, torch().numbers);
  const int64_t rows = x.sizes[0], cols = x.sizes[1];
  check_columns(cols);
  check_graph(edges, rows);
  check_epilogue(after, edges.rows(), cols);

  const QlrGraph graph = call.prepared.graph(edges, rows);
  Output to;
  call.results[0] = call.prepared.output(after, edges.rows(), cols, to);
  answered(qlr_float_spmm(&graph, call.prepared.floats(x), rows, cols, &to.epilogue, call.threads,
                          call.isa));
}

const Kernel<packed_spmm> kPackedSpmm("packed_spmm", Gradient::kRefused);
const Kernel<packed_extremum> kPackedExtremum("packed_extremum", Gradient::kRefused);
const Kernel<packed_attention> kPackedAttention("packed_attention", Gradient::kRefused);
const Kernel<packed_linear> kPackedLinear("packed_linear", Gradient::kRefused);
const Kernel<spmm> kSpmm("spmm", Gradient::kRefused);

}  // namespace
}  // namespace qlr
