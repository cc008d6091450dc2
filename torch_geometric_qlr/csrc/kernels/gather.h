// The packed rows a gather reads, and how far ahead it asks for them.
#pragma once

#include "../layout.h"
#include "../qlr.h"

namespace qlr {
namespace {  // one copy per instruction set, see schedule.h

// Asks for a line of memory. In assembly for GCC, which takes a function that does nothing but
// __builtin_prefetch for one without effects, and drops the calls to it.
inline void prefetch_line(const void* p) {
#if defined(__clang__)
  __builtin_prefetch(p);
#elif defined(__GNUC__) && defined(__x86_64__)
  asm volatile("prefetcht0 %a0" : : "p"(p));
#elif defined(__GNUC__) && defined(__aarch64__)
  asm volatile("prfm pldl1keep, %a0" : : "p"(p));
#else
  (void)p;
#endif
}

// The same for a line that will be written.
inline void prefetch_to_write(void* p) {
#if defined(__clang__)
  __builtin_prefetch(p, 1);
#elif defined(__GNUC__) && defined(__x86_64__)
  asm volatile("prefetchw %a0" : : "p"(p));
#elif defined(__GNUC__) && defined(__aarch64__)
  asm volatile("prfm pstl1keep, %a0" : : "p"(p));
#else
  (void)p;
#endif
}

// Edges between the request for a row and its use: enough to cover the latency of memory, few
// enough that the lines are still in the first cache when they are needed.
constexpr int64_t kPrefetch = 24;
// Edges whose weights are prepared at once; the rows they name fit the first two caches.
constexpr int kBlockEdges = 256;
// Edges summed before 32-bit sums of 8-bit codes could overflow (255 * 2^22 < 2^31).
constexpr int64_t kSafeEdges = int64_t{1} << 22;
// The same with weights that are integers of 8 bits (255 * 128 * 2^16 < 2^31).
constexpr int64_t kSafeCodedEdges = int64_t{1} << 16;

struct PackedRows {
  const uint8_t* data;
  Layout layout;
  const int32_t* col;
  int64_t edges;

  const uint8_t* row(int64_t edge) const { return data + col[edge] * layout.stride; }
  // Requests `bytes` of the row kPrefetch edges ahead, from byte `offset` on.
  void prefetch(int64_t edge, int64_t offset, int64_t bytes) const {
    const int64_t ahead = edge + kPrefetch < edges ? edge + kPrefetch : edges - 1;
    const uint8_t* p = row(ahead) + offset;
    for (int64_t b = 0; b < bytes; b += 64) prefetch_line(p + b);
  }
};

}  // namespace
}  // namespace qlr
