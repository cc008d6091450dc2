// The kernels for aarch64 processors with dot products of bytes.
#include "isa/compiled.h"

#if QLR_HAS_NEON
#include "isa/neon_begin.h"

namespace qlr {
namespace neon {
namespace {
#include "kernels/all.inl"
}  // namespace
}  // namespace neon

const KernelTable& neon_kernels() { return neon::table; }

}  // namespace qlr

#include "isa/end.h"
#endif
