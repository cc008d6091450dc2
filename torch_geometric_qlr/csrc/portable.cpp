// The kernels in plain C++, for any processor.
#include "kernels/shared.h"
#include "simd/portable.h"

namespace qlr {
namespace portable {
namespace {
#include "kernels/all.inl"
}  // namespace
}  // namespace portable

const KernelTable& portable_kernels() { return portable::table; }

}  // namespace qlr
