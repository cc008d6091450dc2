// The kernels for processors with AVX2 and FMA.
#include "isa/compiled.h"

#if QLR_HAS_AVX2
#include "isa/avx2_begin.h"

namespace qlr {
namespace avx2 {
namespace {
#include "kernels/all.inl"
}  // namespace
}  // namespace avx2

const KernelTable& avx2_kernels() { return avx2::table; }

}  // namespace qlr

#include "isa/end.h"
#endif
