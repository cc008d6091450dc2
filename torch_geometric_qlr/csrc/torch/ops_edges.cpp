// The weights of edges as integers, with a scale for each row of a graph: ops/reference.py, edge_codes.
#include <algorithm>
#include <cmath>

#include "../schedule.h"
#include "ops.h"

namespace qlr {
namespace {

// Weights that are no larger than this are none.
constexpr float kNoWeight = 1e-30f;

// Half to even, for what is far below 2^22.
float rounded(float x) {
  constexpr float kShift = 12582912.f;
  return (x + kShift) - kShift;
}

float scale_of(const float* w, int64_t count, float levels) {
  float largest = 0.f, nothing = 0.f;
  for (int64_t e = 0; e < count; ++e) {
    largest = std::max(largest, std::fabs(w[e]));  // passes over a NaN
    nothing += 0.f * w[e];
  }
  return (largest > kNoWeight ? largest / levels : 1.f) + nothing;
}

void encode_row(const float* w, int64_t count, float levels, int8_t* codes, float* scale) {
  *scale = scale_of(w, count, levels);
  const float by = *scale;
  const bool any = std::isfinite(by);
  for (int64_t e = 0; e < count; ++e) {
    const float code = any ? rounded(w[e] / by) : 0.f;
    codes[e] = static_cast<int8_t>(code);
  }
}

void quantize_edges(Call& call) {
  GraphArgument edges = read_graph(call.in);
  edges.edge_weight = call.in.tensor();
  const int64_t bits = call.in.integer();
  edges.source_weight = call.in.optional();
  require(2 <= bits && bits <= 8);
  const int64_t sources = edges.source_weight.numel;
  check_graph(edges, sources);

  const int64_t count = edges.edges();
  if (!edges.source_weight) edges.col = View();  // where edges come from makes no difference
  QlrGraph graph = call.prepared.graph(edges, sources);
  graph.edges = count;
  if (!valid_rowptr(graph)) throw Refusal{QLR_BAD_ROWPTR, ""};
  const float* w = graph.edge_weight;
  if (edges.source_weight) {
    if (!valid_columns(graph.col, graph.edges, sources)) throw Refusal{QLR_BAD_INDEX, ""};
    float* const product = call.prepared.room<float>(graph.edges);
    for (int64_t e = 0; e < graph.edges; ++e) product[e] = w[e] * graph.source_weight[graph.col[e]];
    w = product;
  }
  call.results[0] = empty(1, &graph.edges, torch().int8);
  call.results[1] = empty(1, &graph.rows, torch().float32);
  int8_t* const codes = static_cast<int8_t*>(address(call.results[0].get()));
  float* const scale = static_cast<float*>(address(call.results[1].get()));
  const float levels = static_cast<float>((1 << (bits - 1)) - 1);
  for (int64_t i = 0; i < graph.rows; ++i) {
    const int64_t first = graph.rowptr[i];
    encode_row(w + first, graph.rowptr[i + 1] - first, levels, codes + first, scale + i);
  }
}

const Kernel<quantize_edges> kQuantizeEdges("quantize_edges", Gradient::kRefused);

}  // namespace
}  // namespace qlr
