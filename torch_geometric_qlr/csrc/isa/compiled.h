// For which instruction sets this compiler makes code, whatever the processor it runs on.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define QLR_HAS_AVX 1  // AVX2 and AVX-512
#else
#define QLR_HAS_AVX 0
#endif

#if defined(__clang__)
#define QLR_KNOWS_TILES (__clang_major__ >= 12)
#elif defined(__GNUC__)
#define QLR_KNOWS_TILES (__GNUC__ >= 11)
#else
#define QLR_KNOWS_TILES 0
#endif

// Linux alone is asked for the tiles' memory, see dispatch.cpp.
#if QLR_HAS_AVX && QLR_KNOWS_TILES && defined(__linux__)
#define QLR_HAS_AMX 1
#else
#define QLR_HAS_AMX 0
#endif
