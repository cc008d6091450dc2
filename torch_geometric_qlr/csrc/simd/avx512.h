// Vectors of 16 floats and of 64 bytes. Included with AVX-512 F, BW, DQ, VL and VNNI switched on.
#pragma once

#define QLR_VNNI  // see kernels/all.inl

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace qlr {
namespace avx512 {
namespace {  // one copy per translation unit, see schedule.h

struct F {
  static constexpr int W = 16;
  static constexpr bool kFused = true;  // whether fma and fnma round once
  typedef __m512 vf;
  typedef __m512i vi;
  static vf zero() { return _mm512_setzero_ps(); }
  static vf set1(float a) { return _mm512_set1_ps(a); }
  static vf load(const float* p) { return _mm512_loadu_ps(p); }
  static vf load_partial(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(n < 16 ? (1u << n) - 1 : 0xffffu, p);
  }
  static void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
  // Past the caches, to an address of a whole vector; fence() before anyone else reads.
  static void stream(float* p, vf a) { _mm512_stream_ps(p, a); }
  static void fence() { _mm_sfence(); }
  static vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
  static vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
  static vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
  static vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
  static vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
  static vf fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
  static vf max(vf a, vf b) { return _mm512_max_ps(a, b); }
  static vf min(vf a, vf b) { return _mm512_min_ps(a, b); }
  static vf round(vf a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static bool any_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
  // a where `where` is not 0, else b.
  static vf choose(vf where, vf a, vf b) {
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(where, zero(), _CMP_NEQ_UQ), a);
  }
  static vi to_int(vf a) { return _mm512_cvtps_epi32(a); }
  static vf to_float(vi a) { return _mm512_cvtepi32_ps(a); }
  static vi load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_int(int32_t* p, vi a) { _mm512_storeu_si512(p, a); }
  static vi set1_int(int32_t a) { return _mm512_set1_epi32(a); }
  static vi add_int(vi a, vi b) { return _mm512_add_epi32(a, b); }
  static vi sub_int(vi a, vi b) { return _mm512_sub_epi32(a, b); }
  static vi mul_int(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
  static vi both_int(vi a, vi b) { return _mm512_and_si512(a, b); }
  static vi min_int(vi a, vi b) { return _mm512_min_epi32(a, b); }
  static vi shift_right(vi a, vi k) { return _mm512_srlv_epi32(a, k); }
  static bool any_zero(vi a) { return _mm512_testn_epi32_mask(a, a) != 0; }
  // Bytes as words.
  static vi load_words(const void* p) { return _mm512_loadu_si512(p); }
  // One bit per lane in which they differ.
  static uint32_t differing(vi a, vi b) { return _mm512_cmpneq_epi32_mask(a, b); }
  // Lanes from n on are 0.
  static vi keep(vi a, int64_t n) { return _mm512_maskz_mov_epi32((1u << n) - 1, a); }
  // W codes as bytes, side by side.
  typedef __m128i vb;
  // Codes of b join those of a, k bits further up.
  static vb either(vb a, vb b, int k) { return _mm_or_si128(a, _mm_slli_epi16(b, k)); }
  static void store_bytes(uint8_t* p, vb a) { _mm_storeu_si128(reinterpret_cast<vb*>(p), a); }
  static void store_u8(uint8_t* p, vi a) { store_bytes(p, _mm512_cvtepi32_epi8(a)); }
  // Four vectors of codes, side by side.
  static void store_four(uint8_t* p, const vi* a) {
    for (int k = 0; k < 4; ++k) store_u8(p + k * W, a[k]);
  }
  static vb no_bytes() { return _mm_setzero_si128(); }
  // To field K of each byte, how many of the thresholds, W of each code side by side, y reaches.
  template <int BITS, int K> static vb add_reached(vb bytes, vf y, const float* thresholds) {
    const vb one = _mm_set1_epi8(static_cast<char>(1 << (BITS * K)));
    for (int n = 0; n < (1 << BITS) - 1; ++n)
      bytes = _mm_mask_add_epi8(bytes, _mm512_cmp_ps_mask(y, load(thresholds + n * W), _CMP_GE_OQ),
                                bytes, one);
    return bytes;
  }
  static vf load_field(const uint8_t* p, int shift, int mask) {
    const vi x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const vi y = _mm512_srl_epi32(x, _mm_cvtsi32_si128(shift));
    return _mm512_cvtepi32_ps(_mm512_and_si512(y, _mm512_set1_epi32(mask)));
  }
  static constexpr int kTable = 16;
  static vf lookup(vf table, const int32_t* index) {
    return _mm512_permutexvar_ps(load_int(index), table);
  }
  static vf gather(const float* table, vi index) { return _mm512_i32gather_ps(index, table, 4); }
  static vi load_int_partial(const int32_t* p, int64_t n) {
    return _mm512_maskz_loadu_epi32(n < 16 ? (1u << n) - 1 : 0xffffu, p);
  }
  static vf between(vf a, vf low, vf high) {
    const __mmask16 inside =
        _mm512_cmp_ps_mask(a, low, _CMP_GE_OQ) & _mm512_cmp_ps_mask(a, high, _CMP_LE_OQ);
    return _mm512_maskz_mov_ps(inside, set1(1.f));
  }
  // In steps of our own: compilers differ in the order of the reductions they come with.
  static float largest(vf a) {
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static double sum(vf a) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    const __m512d s = _mm512_add_pd(low, high);
    const __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(s), _mm512_extractf64x4_pd(s, 1));
    const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
  }
};

struct Bytes {
  static constexpr int N = 64;
  typedef __m512i v;
  static v zero() { return _mm512_setzero_si512(); }
  static v set1(int a) { return _mm512_set1_epi8(static_cast<char>(a)); }
  static v low_bytes() { return _mm512_set1_epi16(0xff); }
  static v add8(v a, v b) { return _mm512_add_epi8(a, b); }
  static v add16(v a, v b) { return _mm512_add_epi16(a, b); }
  static v sub16(v a, v b) { return _mm512_sub_epi16(a, b); }
  static v both(v a, v b) { return _mm512_and_si512(a, b); }
  template <int K> static v right16(v a) { return K ? _mm512_srli_epi16(a, K) : a; }
  template <int K> static v left16(v a) { return _mm512_slli_epi16(a, K); }
  // All bytes in order, 16 to a vector of int32.
  static void widen8(v a, __m512i* out) {
    out[0] = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(a));
    out[1] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(a, 1));
    out[2] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(a, 2));
    out[3] = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(a, 3));
  }
  // The same for words that belong to the even and to the odd bytes.
  static void widen16(v even, v odd, __m512i* out) {
    const v low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
    // Of each lane the low eight words, then the high eight.
    const v first =
        _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
    const v last =
        _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
    out[0] = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(first));
    out[1] = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(first, 1));
    out[2] = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(last));
    out[3] = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(last, 1));
  }
  // R rows side by side, each N / R bytes.
  template <int R> static v load_rows(const uint8_t* const* p) {
    if (R == 1) return _mm512_loadu_si512(p[0]);
    if (R == 2) return _mm512_inserti64x4(_mm512_castsi256_si512(half(p[0])), half(p[R - 1]), 1);
    const __m256i low =
        _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(p[0])), quarter(p[1 % R]), 1);
    const __m256i high =
        _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(p[2 % R])), quarter(p[3 % R]), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }

 private:
  static __m256i half(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static __m128i quarter(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
};

// Four unsigned bytes times four signed bytes, summed into each int32.
struct Dot {
  static constexpr int W = 16;
  static constexpr int64_t kInputs = 4;  // are padded to a multiple of this
  template <int B> using Code = uint8_t;
  template <int B> using Weight = int8_t;
  typedef __m512i v;
  static v load_sums(const int32_t* p) { return _mm512_loadu_si512(p); }
  static v repeat4(const uint8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  static v load(const int8_t* p) { return _mm512_loadu_si512(p); }
  // The intrinsic of the same name makes GCC 12 copy every accumulator to and fro.
  template <int B> static v dot(v acc, v a, v b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
  }
  static void store(int32_t* p, v a) { _mm512_storeu_si512(p, a); }
  static constexpr bool kWords = false;
};

}  // namespace
}  // namespace avx512
}  // namespace qlr
