// The kernels for processors with AMX: those for AVX-512, but for the products.
#include "isa/compiled.h"

#if QLR_HAS_AMX
#include "isa/amx_begin.h"

namespace qlr {
namespace amx {
namespace {

using avx512::F;
// Panels as long as the tiles.
struct Dot : avx512::Dot {
  static constexpr int64_t kInputs = 64;
};

// clang-format off
#include "kernels/epilogue.inl"
#include "kernels/quantize.inl"
#include "kernels/range_grid.inl"
#include "kernels/row_ranges.inl"
#include "kernels/products_amx.inl"
#include "kernels/sparse_rows.inl"
#include "kernels/linear_inputs.inl"
#include "kernels/linear.inl"
// clang-format on

}  // namespace
}  // namespace amx

const KernelTable& amx_kernels() {
  static const KernelTable table = [] {
    KernelTable all = avx512_kernels();
    all.packed_linear = amx::packed_linear;
    all.quantize_linear = amx::quantize_linear;
    return all;
  }();
  return table;
}

}  // namespace qlr

#include "isa/end.h"
#endif
