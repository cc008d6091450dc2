// From here to end.h AVX-512 F, BW, DQ, VL and VNNI are on. See avx2_begin.h.
#include <immintrin.h>

#include "../kernels/shared.h"

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

#include "../simd/avx512.h"
