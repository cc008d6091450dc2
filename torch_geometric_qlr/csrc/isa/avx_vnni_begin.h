// From here to end.h AVX2, FMA and VNNI in the encoding of AVX are on. See avx2_begin.h.
#include <immintrin.h>

#include "../kernels/shared.h"

// A build for tests on processors that lack the instructions does without them, see simd/avx2.h.
#if defined(__clang__) && defined(QLR_EMULATED_VNNI)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#elif defined(QLR_EMULATED_VNNI)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avxvnni")
#endif

#include "../simd/avx2.h"
