// Who does which rows: chunks balanced by edges, threads, scratch memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "qlr.h"

// For what runs per vector and is too large for the compiler to inline on its own: a call there costs
// as much as the work. And for what runs per row: inlined, it takes the registers of the loop over
// the edges.
#if defined(__GNUC__)
#define QLR_ALWAYS_INLINE __attribute__((always_inline))
#define QLR_NEVER_INLINE __attribute__((noinline))
#define QLR_LIKELY(condition) __builtin_expect(condition, 1)
#define QLR_UNLIKELY(condition) __builtin_expect(condition, 0)
#else
#define QLR_ALWAYS_INLINE
#define QLR_NEVER_INLINE
#define QLR_LIKELY(condition) (condition)
#define QLR_UNLIKELY(condition) (condition)
#endif

namespace qlr {
// Internal to each translation unit: code built for one instruction set must never be the copy that
// the linker keeps for all.
namespace {

// A row costs about this many edges even when it has none (its epilogue and a mispredicted end).
constexpr int64_t kRowCost = 8;
// Work below this many bytes touched runs on one thread: a barrier costs more than it saves.
constexpr int64_t kSerialBytes = 1 << 18;
constexpr int64_t kChunksPerThread = 16;

// Runs body(begin, end) over [0, count) in pieces; a piece is taken by whoever is free.
template <typename Body>
void parallel_pieces(int64_t count, int64_t pieces, int threads, const Body& body) {
  pieces = std::max<int64_t>(1, std::min(pieces, count));
#if defined(_OPENMP)
  if (threads > 1 && pieces > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t p = 0; p < pieces; ++p) body(count * p / pieces, count * (p + 1) / pieces);
    return;
  }
#endif
  for (int64_t p = 0; p < pieces; ++p) body(count * p / pieces, count * (p + 1) / pieces);
}

// The same over the rows of a matrix, `row_bytes` being what one row reads and writes.
template <typename Body>
void parallel_rows(int64_t rows, int64_t row_bytes, int threads, const Body& body) {
  if (rows <= 0) return;
  const bool serial = threads <= 1 || rows * row_bytes < kSerialBytes;
  parallel_pieces(rows, serial ? 1 : threads * kChunksPerThread, serial ? 1 : threads, body);
}

// First row whose cost, edges plus kRowCost per row, reaches `target`. rowptr must be ascending.
inline int64_t row_at_cost(const int64_t* rowptr, int64_t rows, int64_t target) {
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (rowptr[middle] + kRowCost * middle < target) low = middle + 1;
    else high = middle;
  }
  return low;
}

inline bool valid_rowptr(const QlrGraph& graph) {
  if (graph.rowptr[0] != 0 || graph.rowptr[graph.rows] != graph.edges) return false;
  int64_t descents = 0;
  for (int64_t i = 0; i < graph.rows; ++i) descents += graph.rowptr[i + 1] < graph.rowptr[i];
  return descents == 0;
}

// Negative indices are huge when read as unsigned, so one maximum finds both kinds.
inline bool valid_columns(const int32_t* col, int64_t count, int64_t source_rows) {
  uint32_t largest = 0;
  for (int64_t e = 0; e < count; ++e) largest = std::max(largest, static_cast<uint32_t>(col[e]));
  return count == 0 || static_cast<int64_t>(largest) < source_rows;
}

// Runs body(first_row, last_row) over edge-balanced chunks of rows, after their indices have been
// checked; the check also brings the chunk's index stream into the cache.
template <typename Body>
int32_t parallel_edges(const QlrGraph& graph, int64_t source_rows, int64_t row_bytes, int threads,
                       const Body& body) {
  if (!graph.checked && !valid_rowptr(graph)) return QLR_BAD_ROWPTR;
  const int64_t cost = graph.edges + kRowCost * graph.rows;
  if (cost * row_bytes < kSerialBytes) threads = 1;
  // A chunk's index stream stays within a few tens of kB, or is a 64th of the work.
  const int64_t chunks = std::max<int64_t>(threads * kChunksPerThread, cost / (1 << 14));
  std::atomic<int32_t> status{QLR_OK};
  parallel_pieces(cost, chunks, threads, [&](int64_t begin, int64_t end) {
    const int64_t first = row_at_cost(graph.rowptr, graph.rows, begin);
    const int64_t last = end == cost ? graph.rows : row_at_cost(graph.rowptr, graph.rows, end);
    if (first >= last) return;
    const int64_t e0 = graph.rowptr[first], e1 = graph.rowptr[last];
    if (!graph.checked && !valid_columns(graph.col + e0, e1 - e0, source_rows)) {
      status.store(QLR_BAD_INDEX, std::memory_order_relaxed);
      return;
    }
    body(first, last);
  });
  return status.load();
}

// Without elements there may be no addresses either, which memcpy does not take.
inline void copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// Zeroed scratch memory aligned for any vector.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t wanted = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T);
    const size_t bytes = (wanted + 127) & ~size_t{63};
    base_ = std::calloc(bytes + 64, 1);
    if (base_ == nullptr) throw std::bad_alloc();
    const uintptr_t start = reinterpret_cast<uintptr_t>(base_);
    data_ = reinterpret_cast<T*>((start + 63) & ~uintptr_t{63});
  }
  ~Scratch() { std::free(base_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  void* base_;
  T* data_;
};

}  // namespace
}  // namespace qlr
