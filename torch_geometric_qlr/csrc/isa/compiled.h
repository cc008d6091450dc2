// For which instruction sets this compiler makes code, whatever the processor it runs on.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define QLR_HAS_AVX2 1
#else
#define QLR_HAS_AVX2 0
#endif

// A build for tests that are short of time leaves it out.
#if QLR_HAS_AVX2 && !defined(QLR_NO_AVX512)
#define QLR_HAS_AVX512 1
#else
#define QLR_HAS_AVX512 0
#endif

#if defined(__clang__)
#define QLR_KNOWS_TILES (__clang_major__ >= 12)
#elif defined(__GNUC__)
#define QLR_KNOWS_TILES (__GNUC__ >= 11)
#else
#define QLR_KNOWS_TILES 0
#endif

// The first versions that know the instructions are those of the tiles.
#if QLR_HAS_AVX2 && QLR_KNOWS_TILES
#define QLR_HAS_AVX_VNNI 1
#else
#define QLR_HAS_AVX_VNNI 0
#endif

// Linux alone is asked for the tiles' memory, see dispatch.cpp.
#if QLR_HAS_AVX512 && QLR_KNOWS_TILES && defined(__linux__)
#define QLR_HAS_AMX 1
#else
#define QLR_HAS_AMX 0
#endif

#if defined(__aarch64__) && defined(__GNUC__) && (defined(__linux__) || defined(__APPLE__))
#define QLR_HAS_NEON 1
#else
#define QLR_HAS_NEON 0
#endif
