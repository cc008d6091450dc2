// From here to end.h AVX-512, as in avx512_begin.h, and AMX for bytes are on. See avx2_begin.h.
#include <immintrin.h>

#include "../kernels/shared.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                 \
    __attribute__((                                                                           \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,amx-tile,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,amx-tile,amx-int8")
#endif

#include "../simd/avx512.h"
