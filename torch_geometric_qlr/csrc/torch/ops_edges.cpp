// The weights of edges as integers, with a scale for each row of a graph: ops/reference.py, edge_codes.
#include <algorithm>
#include <cmath>

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
  const GraphArgument edges = read_graph(call.in);
  const View weight = call.in.tensor();
  const int64_t bits = call.in.integer();
  const View of_source = call.in.optional();
  require(2 <= bits && bits <= 8);
  const int64_t sources = of_source ? of_source.numel : (int64_t{1} << 31) - 1;
  check_graph(edges, sources);
  check_numbers(weight, edges.edges());
  check_numbers(of_source, sources);

  const int64_t rows = edges.rows(), count = edges.edges();
  const auto* const rowptr =
      static_cast<const int64_t*>(call.prepared.as(edges.rowptr, torch().int64));
  bool ascends = rowptr[0] == 0 && rowptr[rows] == count;
  for (int64_t i = 0; i < rows; ++i) ascends &= rowptr[i] <= rowptr[i + 1];
  if (!ascends) throw Refusal{QLR_BAD_ROWPTR, ""};
  const float* w = call.prepared.floats(weight);
  if (of_source) {
    const auto* const col = static_cast<const int64_t*>(call.prepared.as(edges.col, torch().int64));
    const float* const u = call.prepared.floats(of_source);
    float* const product = call.prepared.room<float>(count);
    for (int64_t e = 0; e < count; ++e) {
      if (col[e] < 0 || col[e] >= sources) throw Refusal{QLR_BAD_INDEX, ""};
      product[e] = w[e] * u[col[e]];
    }
    w = product;
  }
  call.results[0] = empty(1, &count, torch().int8);
  call.results[1] = empty(1, &rows, torch().float32);
  int8_t* const codes = static_cast<int8_t*>(address(call.results[0].get()));
  float* const scale = static_cast<float*>(address(call.results[1].get()));
  const float levels = static_cast<float>((1 << (bits - 1)) - 1);
  for (int64_t i = 0; i < rows; ++i)
    encode_row(w + rowptr[i], rowptr[i + 1] - rowptr[i], levels, codes + rowptr[i], scale + i);
}

const Kernel<quantize_edges> kQuantizeEdges("quantize_edges", Gradient::kRefused);

}  // namespace
}  // namespace qlr
