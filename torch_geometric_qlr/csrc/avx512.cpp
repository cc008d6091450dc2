// The kernels for processors with AVX-512 F, BW, DQ, VL and VNNI.
#include "isa/compiled.h"

#if QLR_HAS_AVX512
#include "isa/avx512_begin.h"

namespace qlr {
namespace avx512 {
namespace {
#include "kernels/all.inl"
}  // namespace
}  // namespace avx512

const KernelTable& avx512_kernels() { return avx512::table; }

}  // namespace qlr

#include "isa/end.h"
#endif
