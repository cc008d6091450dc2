// Attention coefficients: ops/definitions/edge_softmax.py.
#include <cstring>

#include "../schedule.h"
#include "ops.h"

namespace qlr {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// exp(x) for x <= 0, to a unit in the last place or two; 0 where it would be no normal number, and of a
// NaN one. Without branches, which the compiler would not make vectors of: what is too low is masked.
inline float exp_below_one(float x) {
  constexpr float kLowest = -87.f, kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kShift = 12582912.f;  // its last place is 1, so that a sum with it is rounded
  const uint32_t kept = -static_cast<uint32_t>(!(x < kLowest));
  const float shifted = x * kLog2E + kShift;
  const float whole = shifted - kShift;
  const float r = float_of(bits_of((x - whole * kLn2High) - whole * kLn2Low) & kept);
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  return p * float_of(((bits_of(shifted) - bits_of(kShift) + 127u) << 23) & kept);
}

struct Logits {
  const float* x;
  const float* target;  // or null
  const float* edge;    // or null
  int64_t heads;
  float slope;
};

// Of the rows of a block. H is the number of heads, or 0 for any other; then `room` is for two numbers of
// each, which otherwise stay in registers.
template <int H>
void softmax_rows(const QlrGraph& graph, const Logits& logits, int64_t first, int64_t last,
                  float* room, float* alpha) {
  constexpr int kOwn = H == 0 ? 1 : H;
  const int64_t heads = H == 0 ? logits.heads : H;
  float own_target[kOwn], own_head[kOwn];
  float* const target = H == 0 ? room : own_target;
  float* const head = H == 0 ? room + heads : own_head;
  std::fill_n(target, heads, 0.f);
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = graph.rowptr[i], end = graph.rowptr[i + 1];
    if (logits.target != nullptr) std::copy_n(logits.target + i * heads, heads, target);
    std::fill_n(head, heads, -std::numeric_limits<float>::infinity());
    for (int64_t e = begin; e < end; ++e) {
      const float* const from = logits.x + graph.col[e] * heads;
      float* const to = alpha + e * heads;
      for (int64_t h = 0; h < heads; ++h) {
        float logit = from[h] + target[h];
        if (logits.edge != nullptr) logit += logits.edge[e * heads + h];
        logit = logit > 0.f ? logit : logit * logits.slope;
        head[h] = logit > head[h] ? logit : head[h];
        to[h] = logit;
      }
    }
    for (int64_t e = begin; e < end; ++e)
      for (int64_t h = 0; h < heads; ++h) alpha[e * heads + h] -= head[h];
  }
  const int64_t stop = graph.rowptr[last] * heads;
  for (int64_t k = graph.rowptr[first] * heads; k < stop; ++k) alpha[k] = exp_below_one(alpha[k]);
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = graph.rowptr[i], end = graph.rowptr[i + 1];
    std::fill_n(head, heads, 0.f);
    for (int64_t e = begin; e < end; ++e)
      for (int64_t h = 0; h < heads; ++h) head[h] += alpha[e * heads + h];
    for (int64_t h = 0; h < heads; ++h) head[h] = 1.f / head[h];
    for (int64_t e = begin; e < end; ++e)
      for (int64_t h = 0; h < heads; ++h) alpha[e * heads + h] *= head[h];
  }
}

using SoftmaxRows = void (*)(const QlrGraph&, const Logits&, int64_t, int64_t, float*, float*);

SoftmaxRows rows_with(int64_t heads) {
  switch (heads) {
    case 1: return softmax_rows<1>;
    case 2: return softmax_rows<2>;
    case 4: return softmax_rows<4>;
    case 8: return softmax_rows<8>;
    default: return softmax_rows<0>;
  }
}

void edge_softmax(Call& call) {
  const GraphArgument edges = read_graph(call.in);
  const View x = call.in.tensor(), target = call.in.optional(), edge = call.in.optional();
  const double slope = call.in.number();
  check_matrix(x, torch().numbers);
  const int64_t sources = x.sizes[0], heads = x.sizes[1], count = edges.edges();
  check_graph(edges, sources);
  for (const auto& [given, rows] : {std::pair(&target, edges.rows()), std::pair(&edge, count)}) {
    if (!*given) continue;
    check_matrix(*given, torch().numbers);
    require(given->is_matrix(rows, heads));
  }
  const QlrGraph graph = call.prepared.graph(edges, sources);
  const Logits logits{call.prepared.floats(x), call.prepared.floats(target),
                      call.prepared.floats(edge), heads, static_cast<float>(slope)};
  call.results[0] = empty_matrix(count, heads, torch().float32);
  float* const alpha = static_cast<float*>(address(call.results[0].get()));
  const SoftmaxRows of_rows = rows_with(heads);
  constexpr int64_t kRows = 64;  // whose coefficients are in the first cache together
  answered(
      parallel_edges(graph, sources, heads * 8, call.threads, [&](int64_t first, int64_t last) {
    Scratch<float> room(2 * heads);
    for (int64_t row = first; row < last; row += kRows)
      of_rows(graph, logits, row, std::min(row + kRows, last), room.data(), alpha);
  }));
}

const Kernel<edge_softmax> kEdgeSoftmax("edge_softmax", Gradient::kRefused);

}  // namespace
}  // namespace qlr
