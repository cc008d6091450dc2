// What every instruction set provides, in the order of the table in all.inl.
#pragma once

#include "../qlr.h"

namespace qlr {

struct KernelTable {
  int32_t (*quantize_pack)(const float*, int64_t, int64_t, const QlrQuantizer&, uint8_t*, int);
  int32_t (*quantize_own_rows)(const float*, int64_t, int64_t, const QlrRowQuantizer&, uint8_t*,
                               float*, float*, int);
  int32_t (*pack)(const uint8_t*, int64_t, int64_t, int, uint8_t*, int);
  int32_t (*unpack)(const QlrPacked&, uint8_t*, int);
  int32_t (*dequantize)(const QlrPacked&, float*, int);
  int32_t (*fake_quantize)(const float*, int64_t, int64_t, const QlrQuantizer&, float*, uint8_t*,
                           int);
  int32_t (*fake_quantize_backward)(const float*, const float*, const float*, const uint8_t*,
                                    int64_t, int64_t, int, float*, float*, int);
  int32_t (*observed_quantize)(const float*, int64_t, int64_t, const QlrObserver&,
                               const QlrObserved&, int);
  int32_t (*packed_spmm)(const QlrGraph&, const QlrPacked&, const QlrEpilogue&, int);
  int32_t (*edge_digits)(const QlrGraph&, int32_t*, int);
  int32_t (*packed_extremum)(const QlrGraph&, const QlrPacked&, bool, const QlrEpilogue&, int);
  int32_t (*packed_attention)(const QlrGraph&, const QlrPacked&, const float*, int64_t,
                              const QlrEpilogue&, int);
  int32_t (*float_spmm)(const QlrGraph&, const float*, int64_t, int64_t, const QlrEpilogue&, int);
  int32_t (*packed_smp)(const QlrGraph&, const float*, int64_t, const QlrQuantizer*,
                        const QlrPacked*, const QlrSmp&, float*, float*, int);
  int32_t (*packed_linear)(const QlrPacked&, const QlrPacked&, const QlrEpilogue&, int);
  int32_t (*quantize_linear)(const float*, int64_t, int64_t, const QlrQuantizer*,
                             const QlrRowQuantizer*, const QlrPacked&, const QlrEpilogue&, int);
};

const KernelTable& portable_kernels();
// Where isa/compiled.h says that there is code for them.
const KernelTable& avx2_kernels();
const KernelTable& avx_vnni_kernels();
const KernelTable& avx512_kernels();
const KernelTable& amx_kernels();
const KernelTable& neon_kernels();

}  // namespace qlr
