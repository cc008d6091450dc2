// The kernels for processors with AVX2 and VNNI in its encoding: those for AVX2, with another dot
// product of bytes.
#include "isa/compiled.h"

#if QLR_HAS_AVX_VNNI
#define QLR_BYTE_DOTS
#include "isa/avx_vnni_begin.h"

namespace qlr {
namespace avx2 {
namespace {
#include "kernels/all.inl"
}  // namespace
}  // namespace avx2

const KernelTable& avx_vnni_kernels() { return avx2::table; }

}  // namespace qlr

#include "isa/end.h"
#endif
