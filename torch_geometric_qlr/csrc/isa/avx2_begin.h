// From here to end.h AVX2 and FMA are on. Only there: the library loads everywhere, and dispatch.cpp
// decides. What all share is read before.
#include <immintrin.h>

#include "../kernels/shared.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "../simd/avx2.h"
