// All kernels, each after what it is written with, and the table of them. Read once per instruction
// set, in its namespace.

// clang-format off
#include "epilogue.inl"
#include "quantize.inl"
#include "range_grid.inl"
#include "row_ranges.inl"
#include "observed.inl"
#include "weights.inl"
#if defined(QLR_PLAIN)
#if defined(QLR_NEON)
#include "coded_edges_neon.inl"
#else
#include "sum_portable.inl"
#include "coded_edges_portable.inl"
#endif
#include "weighted_portable.inl"
#include "extremum_portable.inl"
#else
#include "sum.inl"
#if defined(QLR_VNNI)
#include "weighted_vnni.inl"
#include "coded_edges_vnni.inl"
#else
#include "coded_edges.inl"
#include "weighted_digits.inl"
#endif
#include "extremum.inl"
#endif
#include "spmm.inl"
#include "smp.inl"
#include "gather_ops.inl"
#include "products.inl"
#include "sparse_rows.inl"
#include "linear_inputs.inl"
#include "linear.inl"
// clang-format on

const KernelTable table{
    quantize_pack,
    quantize_own_rows,
    pack,
    unpack,
    dequantize,
    fake_quantize,
    fake_quantize_backward,
    observed_quantize,
    packed_spmm,
    edge_digits,
    packed_extremum,
    packed_attention,
    float_spmm,
    packed_smp,
    packed_linear,
    quantize_linear,
};
