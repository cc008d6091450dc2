// The exported functions: which instruction set answers, and nothing else.
#include <cstdlib>
#include <cstring>
#include <new>

#include "isa/compiled.h"
#include "kernels/gather.h"
#include "kernels/table.h"
#include "layout.h"
#include "qlr.h"
#include "schedule.h"

#if QLR_HAS_AVX_VNNI || QLR_HAS_AMX
#include <cpuid.h>
#endif
#if QLR_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if QLR_HAS_NEON && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

#if QLR_HAS_AVX_VNNI
// Dot products of bytes in 256 bits, in the encoding that processors without AVX-512 have.
bool has_avx_vnni() {
#if defined(QLR_EMULATED_VNNI)
  return true;
#else
  unsigned a = 0, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
#endif
}
#endif

#if QLR_HAS_AVX512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

#if QLR_HAS_AMX
// Whether there are tiles for bytes. The system gives their memory to processes that ask for it.
bool has_amx() {
  unsigned a, b, c, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return (d & kTile) && (d & kInt8) && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

#if QLR_HAS_NEON
// Dot products of bytes; every processor of Apple's has them.
bool has_neon() {
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProducts;
#else
  return true;
#endif
}
#endif

constexpr const char* kNames[] = {"portable", "avx2", "avx_vnni", "avx512", "amx", "neon"};
constexpr int32_t kCount = sizeof(kNames) / sizeof(kNames[0]);

// What the environment variable QLR_CPU allows at most; Python refuses a name that is none of these.
int32_t allowed() {
  const char* const name = std::getenv("QLR_CPU");
  for (int32_t isa = QLR_PORTABLE; name != nullptr && isa < kCount; ++isa)
    if (std::strcmp(name, kNames[isa]) == 0) return isa;
  return QLR_BEST;
}

// The kernels of each instruction set; null where there is none, or none that runs here.
struct Kernels {
  const qlr::KernelTable* of[kCount] = {};

  Kernels() {
    of[QLR_PORTABLE] = &qlr::portable_kernels();
#if QLR_HAS_AVX2
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2) of[QLR_AVX2] = &qlr::avx2_kernels();
#endif
#if QLR_HAS_AVX_VNNI
    if (avx2 && has_avx_vnni()) of[QLR_AVX_VNNI] = &qlr::avx_vnni_kernels();
#endif
#if QLR_HAS_AVX512
    if (avx2 && has_avx512()) of[QLR_AVX512] = &qlr::avx512_kernels();
#endif
#if QLR_HAS_AMX
    if (of[QLR_AVX512] != nullptr && has_amx()) of[QLR_AMX] = &qlr::amx_kernels();
#endif
#if QLR_HAS_NEON
    if (has_neon()) of[QLR_NEON] = &qlr::neon_kernels();
#endif
    for (int32_t isa = allowed() + 1; isa < kCount; ++isa) of[isa] = nullptr;
  }
};

const Kernels& kernels() {
  static const Kernels all;
  return all;
}

// Of the wanted instruction set, or of the best below it.
const qlr::KernelTable& kernels(int32_t wanted) {
  int32_t isa = std::min(wanted, kCount - 1);
  while (kernels().of[isa] == nullptr) --isa;
  return *kernels().of[isa];
}

template <typename Call>
int32_t guarded(const Call& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return QLR_NO_MEMORY;
  }
}

}  // namespace

int32_t qlr_abi_version() { return QLR_ABI_VERSION; }
int32_t qlr_has_isa(int32_t isa) {
  return 0 <= isa && isa < kCount && kernels().of[isa] != nullptr;
}
int32_t qlr_has_vnni() { return qlr_has_isa(QLR_AVX_VNNI) || qlr_has_isa(QLR_AVX512); }
int32_t qlr_has_openmp() {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

int32_t qlr_quantize_pack(const float* x, int64_t rows, int64_t cols, const QlrQuantizer* q,
                          uint8_t* packed, int32_t threads, int32_t isa) {
  return guarded([&] { return kernels(isa).quantize_pack(x, rows, cols, *q, packed, threads); });
}
int32_t qlr_quantize_rows(const float* x, int64_t rows, int64_t cols, const QlrRowQuantizer* q,
                          uint8_t* packed, float* scale, float* zero, int32_t threads,
                          int32_t isa) {
  return guarded([&] {
    return kernels(isa).quantize_own_rows(x, rows, cols, *q, packed, scale, zero, threads);
  });
}
int32_t qlr_pack(const uint8_t* codes, int64_t rows, int64_t cols, int32_t bits, uint8_t* packed,
                 int32_t threads, int32_t isa) {
  return guarded([&] { return kernels(isa).pack(codes, rows, cols, bits, packed, threads); });
}
int32_t qlr_unpack(const QlrPacked* source, uint8_t* codes, int32_t threads, int32_t isa) {
  return guarded([&] { return kernels(isa).unpack(*source, codes, threads); });
}
int32_t qlr_dequantize(const QlrPacked* source, float* values, int32_t threads, int32_t isa) {
  return guarded([&] { return kernels(isa).dequantize(*source, values, threads); });
}

int32_t qlr_index_select(const uint8_t* packed, int64_t rows, int64_t stride, const int64_t* index,
                         int64_t count, uint8_t* out, int32_t threads) {
  for (int64_t i = 0; i < count; ++i)
    if (index[i] < 0 || index[i] >= rows) return QLR_BAD_INDEX;
  qlr::parallel_rows(count, stride, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t ahead = std::min(i + qlr::kPrefetch, count - 1);
      qlr::prefetch_line(packed + index[ahead] * stride);
      qlr::copy(out + i * stride, packed + index[i] * stride, stride);
    }
  });
  return QLR_OK;
}

int32_t qlr_packed_spmm(const QlrGraph* graph, const QlrPacked* source, const QlrEpilogue* epilogue,
                        int32_t threads, int32_t isa) {
  return guarded([&] { return kernels(isa).packed_spmm(*graph, *source, *epilogue, threads); });
}
int32_t qlr_edge_digits(const QlrGraph* graph, int32_t* digits, int32_t threads, int32_t isa) {
  return guarded([&] { return kernels(isa).edge_digits(*graph, digits, threads); });
}
int32_t qlr_packed_extremum(const QlrGraph* graph, const QlrPacked* source, int32_t largest,
                            const QlrEpilogue* epilogue, int32_t threads, int32_t isa) {
  return guarded([&] {
    return kernels(isa).packed_extremum(*graph, *source, largest != 0, *epilogue, threads);
  });
}
int32_t qlr_packed_attention(const QlrGraph* graph, const QlrPacked* source, const float* alpha,
                             int64_t heads, const QlrEpilogue* epilogue, int32_t threads,
                             int32_t isa) {
  return guarded([&] {
    return kernels(isa).packed_attention(*graph, *source, alpha, heads, *epilogue, threads);
  });
}
int32_t qlr_packed_linear(const QlrPacked* input, const QlrPacked* weight,
                          const QlrEpilogue* epilogue, int32_t threads, int32_t isa) {
  return guarded([&] { return kernels(isa).packed_linear(*input, *weight, *epilogue, threads); });
}
int32_t qlr_quantize_linear(const float* x, int64_t rows, int64_t cols, const QlrQuantizer* grid,
                            const QlrRowQuantizer* own, const QlrPacked* weight,
                            const QlrEpilogue* epilogue, int32_t threads, int32_t isa) {
  return guarded([&] {
    return kernels(isa).quantize_linear(x, rows, cols, grid, own, *weight, *epilogue, threads);
  });
}
int32_t qlr_packed_smp(const QlrGraph* graph, const float* x, int64_t cols,
                       const QlrQuantizer* quantizers, const QlrPacked* sources, const QlrSmp* smp,
                       float* work, float* out, int32_t threads, int32_t isa) {
  return guarded([&] {
    return kernels(isa).packed_smp(*graph, x, cols, quantizers, sources, *smp, work, out, threads);
  });
}
int32_t qlr_float_spmm(const QlrGraph* graph, const float* x, int64_t source_rows, int64_t cols,
                       const QlrEpilogue* epilogue, int32_t threads, int32_t isa) {
  return guarded(
      [&] { return kernels(isa).float_spmm(*graph, x, source_rows, cols, *epilogue, threads); });
}
int32_t qlr_fake_quantize(const float* x, int64_t rows, int64_t cols, const QlrQuantizer* q,
                          float* x_hat, uint8_t* mask, int32_t threads, int32_t isa) {
  return guarded(
      [&] { return kernels(isa).fake_quantize(x, rows, cols, *q, x_hat, mask, threads); });
}
int32_t qlr_observed_quantize(const float* x, int64_t rows, int64_t cols, const QlrObserver* by,
                              const QlrObserved* out, int32_t threads, int32_t isa) {
  return guarded([&] { return kernels(isa).observed_quantize(x, rows, cols, *by, *out, threads); });
}
int32_t qlr_fake_quantize_backward(const float* grad, const float* x, const float* x_hat,
                                   const uint8_t* mask, int64_t rows, int64_t cols, int32_t axis,
                                   float* grad_x, float* reduced, int32_t threads, int32_t isa) {
  return guarded([&] {
    return kernels(isa).fake_quantize_backward(grad, x, x_hat, mask, rows, cols, axis, grad_x,
                                               reduced, threads);
  });
}
