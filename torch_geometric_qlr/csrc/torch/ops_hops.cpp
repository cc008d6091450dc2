// Several hops that follow each other, composed of the kernels.
#include <cmath>

#include "../layout.h"
#include "ops.h"

namespace qlr {
namespace {

constexpr double kTinyShare = 1e-12;

// A number in half precision, as a float.
float rounded_to(int32_t dtype, float value) {
  const Owned full = empty(0, nullptr, torch().float32), half = empty(0, nullptr, dtype);
  float* const at = static_cast<float*>(address(full.get()));
  *at = value;
  torch_did(torch().aoti_torch_copy_(half.get(), full.get(), 0));
  torch_did(torch().aoti_torch_copy_(full.get(), half.get(), 0));
  return *at;
}

// scale * factor in the precision of the scale, as torch would; one for each zero point if there are
// more of these.
const float* scaled(Call& call, const PackedArgument& packed, double factor) {
  const View& scale = packed.scale;
  const int64_t count = scale.numel == 1 ? packed.zero.numel : scale.numel;
  float* const out = call.prepared.room<float>(count);
  const bool doubles = scale.dtype == torch().float64;
  const auto* const wide =
      doubles ? static_cast<const double*>(call.prepared.as(scale, scale.dtype)) : nullptr;
  const float* const narrow = doubles ? nullptr : call.prepared.floats(scale);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from = scale.numel == 1 ? 0 : i;
    if (doubles) out[i] = static_cast<float>(wide[from] * factor);
    else out[i] = narrow[from] * static_cast<float>(factor);
    if (!doubles && scale.dtype != torch().float32) out[i] = rounded_to(scale.dtype, out[i]);
  }
  return out;
}

// Before several hops: the weights in the form in which the kernels multiply by them.
void prepare_weights(Call& call, QlrGraph& graph) {
  if (graph.edge_weight == nullptr) return;
  int32_t* const digits = call.prepared.room<int32_t>(4 * (2 * graph.rows + graph.edges / 4));
  if (qlr_edge_digits(&graph, digits, call.threads, call.isa) == QLR_OK) graph.digits = digits;
}

// How the codes of each step are read: value = scale * (code - zero).
std::vector<QlrPacked> sources_of(Call& call, const std::vector<QlrQuantizer>& steps, int64_t rows,
                                  int64_t cols, float factor) {
  std::vector<QlrPacked> sources;
  if (steps.empty()) return sources;
  const int64_t count = static_cast<int64_t>(steps.size());
  float* const scale = call.prepared.room<float>(count);
  float* const zero = call.prepared.room<float>(count);
  const int bits = steps[0].bits;
  const float cut = static_cast<float>(255.0 / ((1 << bits) - 1));
  for (int64_t k = 0; k < count; ++k) {
    const float s = steps[k].truncate ? *steps[k].scale * cut : *steps[k].scale;
    zero[k] = steps[k].truncate ? *steps[k].zero / cut : *steps[k].zero;
    scale[k] = s * factor;
    sources.push_back(
        {nullptr, rows, cols, storage_bits(bits), QLR_PER_TENSOR, scale + k, zero + k});
  }
  return sources;
}

void packed_propagate(Call& call) {
  GraphArgument edges = read_graph(call.in);
  const PackedArgument packed = read_packed(call.in);
  const QuantizerArgument every = read_quantizer(call.in);
  edges.edge_weight = call.in.optional();
  EpilogueArgument after;
  after.row_scale = call.in.optional();
  const double factor = call.in.number();
  after.addend = call.in.optional();
  after.addend_scale = call.in.number();
  after.output = read_output(call.in);
  check_packed(packed);
  check_graph(edges, packed.rows());
  check_epilogue(after, edges.rows(), packed.cols);
  check_steps(every);
  const int64_t rows = packed.rows(), cols = packed.cols;
  require(edges.rows() == rows);

  QlrPacked source = call.prepared.packed(packed);
  if (source.axis == QLR_PER_ROW)
    throw Refusal{QLR_UNSUPPORTED, "several hops from rows with a range of their own each"};
  source.scale = scaled(call, packed, factor);
  QlrGraph graph = call.prepared.coded_graph(edges, rows);
  const std::vector<QlrQuantizer> steps = call.prepared.steps(every);
  const std::vector<QlrPacked> sources =
      sources_of(call, steps, rows, cols, static_cast<float>(factor));
  QlrEpilogue between = call.prepared.epilogue(after);
  uint8_t* codes[2] = {nullptr, nullptr};
  const int64_t size = bytes_of(rows, row_stride(cols, every.bits));
  for (size_t k = 0; k < steps.size() && k < 2; ++k) codes[k] = call.prepared.room<uint8_t>(size);
  if (!steps.empty()) prepare_weights(call, graph);
  for (size_t k = 0; k < steps.size(); ++k) {
    between.packed = codes[k % 2];
    between.quantizer = &steps[k];
    answered(qlr_packed_spmm(&graph, &source, &between, call.threads, call.isa));
    graph.checked = 1;
    source = sources[k];
    source.data = between.packed;
  }
  Output to;
  call.results[0] = call.prepared.output(after, rows, cols, to);
  answered(qlr_packed_spmm(&graph, &source, &to.epilogue, call.threads, call.isa));
}

// mu, eta, eta_lambda, eta_slack, init_lambda, init_slack, tau, primal, projection
QlrSmp read_smp(Arguments& in, int64_t edges) {
  QlrSmp smp{};
  const double mu = in.number(), eta = in.number();
  const double kept = 1 - (1 + mu) * eta;
  smp.kept = static_cast<float>(std::fabs(kept) > kTinyShare ? kept : 0.0);
  smp.spread = static_cast<float>(mu * eta);
  smp.eta = static_cast<float>(eta);
  smp.eta_lambda = static_cast<float>(in.number());
  smp.eta_slack = static_cast<float>(in.number());
  smp.multiplier = static_cast<float>(in.number());
  smp.slack = static_cast<float>(in.number());
  smp.bound = static_cast<float>(in.number() * static_cast<double>(edges));
  const std::string_view primal = in.word(), projection = in.word();
  require(primal == "paper" || primal == "lagrangian");
  require(projection == "none" || projection == "nonnegative" || projection == "nonpositive");
  smp.lagrangian = primal == "lagrangian";
  smp.projection = projection == "none" ? 0 : projection == "nonnegative" ? 1 : -1;
  return smp;
}

void packed_smp(Call& call) {
  GraphArgument edges = read_graph(call.in);
  const View x = call.in.tensor();
  const QuantizerArgument every = read_quantizer(call.in);
  edges.edge_weight = call.in.optional();
  const View row_scale = call.in.optional();
  QlrSmp smp = read_smp(call.in, edges.edges());
  check_matrix(x, torch().floats);
  const int64_t rows = x.sizes[0], cols = x.sizes[1];
  check_columns(cols);
  check_graph(edges, rows);
  check_numbers(row_scale, rows);
  check_steps(every);
  require(edges.rows() == rows && every.scale.numel % 2 == 0);
  // A copy, which the reference makes as well.
  if (every.scale.numel == 0) throw Refusal{QLR_UNSUPPORTED, ""};

  QlrGraph graph = call.prepared.coded_graph(edges, rows);
  const std::vector<QlrQuantizer> steps = call.prepared.steps(every);
  std::vector<QlrPacked> sources = sources_of(call, steps, rows, cols, 1.f);
  const uint8_t* const codes =
      call.prepared.room<uint8_t>(bytes_of(rows, row_stride(cols, every.bits)));
  for (QlrPacked& source : sources) source.data = codes;
  prepare_weights(call, graph);
  smp.steps = static_cast<int64_t>(steps.size()) / 2;
  smp.row_scale = call.prepared.floats(row_scale);
  float* const work = call.prepared.room<float>(bytes_of(3, bytes_of(rows, cols)));
  call.results[0] = empty_matrix(rows, cols, torch().float32);
  float* const out = static_cast<float*>(address(call.results[0].get()));
  answered(qlr_packed_smp(&graph, call.prepared.floats(x), cols, steps.data(), sources.data(), &smp,
                          work, out, call.threads, call.isa));
}

const Kernel<packed_propagate> kPackedPropagate("packed_propagate", Gradient::kRefused);
const Kernel<packed_smp> kPackedSmp("packed_smp", Gradient::kRefused);

}  // namespace
}  // namespace qlr
