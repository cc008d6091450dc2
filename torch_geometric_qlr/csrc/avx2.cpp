// The kernels for processors with AVX2 and FMA. The instruction set is switched on for
// this text only, so that the library loads everywhere and dispatch.cpp decides.
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/gather.h"
#include "kernels/table.h"
#include "layout.h"
#include "schedule.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "simd/avx2.h"

namespace qlr {
namespace avx2 {
namespace {

#include "kernels/epilogue.inl"
#include "kernels/quantize.inl"
#include "kernels/range_grid.inl"
#include "kernels/row_ranges.inl"
#include "kernels/observed.inl"
#include "kernels/weights.inl"
#include "kernels/sum.inl"
#include "kernels/weighted_digits.inl"
#include "kernels/spmm.inl"
#include "kernels/smp.inl"
#include "kernels/extremum.inl"
#include "kernels/gather_ops.inl"
#include "kernels/products.inl"
#include "kernels/linear.inl"

const KernelTable table = QLR_KERNEL_TABLE;

}  // namespace
}  // namespace avx2

const KernelTable* avx2_kernels() { return &avx2::table; }

}  // namespace qlr

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace qlr {
const KernelTable* avx2_kernels() { return nullptr; }
}  // namespace qlr

#endif
