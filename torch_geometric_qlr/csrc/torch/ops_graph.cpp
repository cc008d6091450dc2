// Edges to the compressed rows that the kernels read.
#include <algorithm>

#include "ops.h"

namespace qlr {
namespace {

constexpr int64_t kMaxCount = (int64_t{1} << 31) - 1;

// Counts the edges of each target into rowptr[target + 1]. Whether they arrive sorted by target.
bool count_edges(const int64_t* source, const int64_t* target, int64_t edges, int64_t num_src,
                 int64_t num_dst, int64_t* rowptr) {
  bool sorted = true;
  int64_t before = 0;
  for (int64_t e = 0; e < edges; ++e) {
    const int64_t i = target[e];
    // Negative numbers are huge when read as unsigned.
    if (static_cast<uint64_t>(i) >= static_cast<uint64_t>(num_dst) ||
        static_cast<uint64_t>(source[e]) >= static_cast<uint64_t>(num_src))
      throw Refusal{QLR_BAD_INDEX, ""};
    ++rowptr[i + 1];
    sorted &= before <= i;
    before = i;
  }
  return sorted;
}

void csr(Call& call) {
  const View edge_index = call.in.tensor();
  const int64_t num_src = call.in.integer(), num_dst = call.in.integer();
  require(edge_index.is_of(torch().indices) && edge_index.dim == 2 && edge_index.sizes[0] == 2);
  const int64_t edges = edge_index.sizes[1];
  for (const int64_t count : {num_src, num_dst, edges}) require(0 <= count && count <= kMaxCount);

  const auto* const source =
      static_cast<const int64_t*>(call.prepared.as(edge_index, torch().int64));
  const int64_t* const target = source + edges;
  const int64_t offsets = num_dst + 1;
  call.results[0] = empty(1, &offsets, torch().int64);
  call.results[1] = empty(1, &edges, torch().int32);
  call.results[2] = empty(1, &edges, torch().int32);
  int64_t* const rowptr = static_cast<int64_t*>(address(call.results[0].get()));
  int32_t* const col = static_cast<int32_t*>(address(call.results[1].get()));
  int32_t* const perm = static_cast<int32_t*>(address(call.results[2].get()));

  std::fill(rowptr, rowptr + offsets, 0);
  const bool sorted = count_edges(source, target, edges, num_src, num_dst, rowptr);
  for (int64_t i = 0; i < num_dst; ++i) rowptr[i + 1] += rowptr[i];
  if (sorted) {
    for (int64_t e = 0; e < edges; ++e) {
      col[e] = static_cast<int32_t>(source[e]);
      perm[e] = static_cast<int32_t>(e);
    }
    return;
  }
  int64_t* const next = call.prepared.room<int64_t>(offsets);
  std::copy(rowptr, rowptr + offsets, next);
  for (int64_t e = 0; e < edges; ++e) {
    const int64_t at = next[target[e]]++;
    col[at] = static_cast<int32_t>(source[e]);
    perm[at] = static_cast<int32_t>(e);
  }
}

const Kernel<csr> kCsr("csr", Gradient::kNone);

}  // namespace
}  // namespace qlr
