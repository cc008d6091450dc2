// The kernels for processors with AMX: those for AVX-512, but for the products. The instruction set is
// switched on for this text only, so that the library loads everywhere and dispatch.cpp decides.
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/gather.h"
#include "kernels/table.h"
#include "layout.h"
#include "schedule.h"

#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,amx-tile,amx-int8"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,amx-tile,amx-int8")
#endif

#include "simd/avx512.h"

namespace qlr {
namespace amx {
namespace {

using avx512::F;
// Panels as long as the tiles.
struct Dot : avx512::Dot {
  static constexpr int64_t kInputs = 64;
};

#include "kernels/epilogue.inl"
#include "kernels/products_amx.inl"
#include "kernels/linear.inl"

}  // namespace
}  // namespace amx

const KernelTable* amx_kernels() {
  static const KernelTable table = [] {
    KernelTable all = *avx512_kernels();
    all.packed_linear = amx::packed_linear;
    return all;
  }();
  return &table;
}

}  // namespace qlr

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace qlr {
const KernelTable* amx_kernels() { return nullptr; }
}  // namespace qlr

#endif
