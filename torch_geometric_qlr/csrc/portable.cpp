// The kernels in plain C++, for any processor.
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/gather.h"
#include "kernels/table.h"
#include "layout.h"
#include "schedule.h"
#include "simd/portable.h"

namespace qlr {
namespace portable {
namespace {

#include "kernels/epilogue.inl"
#include "kernels/quantize.inl"
#include "kernels/range_grid.inl"
#include "kernels/row_ranges.inl"
#include "kernels/observed.inl"
#include "kernels/weights.inl"
#include "kernels/sum_portable.inl"
#include "kernels/weighted_portable.inl"
#include "kernels/spmm.inl"
#include "kernels/smp.inl"
#include "kernels/extremum_portable.inl"
#include "kernels/gather_ops.inl"
#include "kernels/products.inl"
#include "kernels/linear.inl"

const KernelTable table = QLR_KERNEL_TABLE;

}  // namespace
}  // namespace portable

const KernelTable& portable_kernels() { return portable::table; }

}  // namespace qlr
