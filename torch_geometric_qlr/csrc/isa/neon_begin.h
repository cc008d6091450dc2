// From here to end.h dot products of bytes are on. See avx2_begin.h.
#include <arm_neon.h>

#include "../kernels/shared.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "../simd/neon.h"
