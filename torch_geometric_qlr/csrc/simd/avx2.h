// Vectors of 8 floats and of 32 bytes. Included with AVX2 and FMA switched on.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace qlr {
namespace avx2 {
namespace {  // avx_vnni.cpp has one of its own

struct F {
  static constexpr int W = 8;
  static constexpr bool kFused = true;  // whether fma and fnma round once
  typedef __m256 vf;
  typedef __m256i vi;
  static vf zero() { return _mm256_setzero_ps(); }
  static vf set1(float a) { return _mm256_set1_ps(a); }
  static vf load(const float* p) { return _mm256_loadu_ps(p); }
  static vf load_partial(const float* p, int64_t n) {
    const vi lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? int(n) : 8), lane));
  }
  static void store(float* p, vf a) { _mm256_storeu_ps(p, a); }
  // Past the caches, to an address of a whole vector; fence() before anyone else reads.
  static void stream(float* p, vf a) { _mm256_stream_ps(p, a); }
  static void fence() { _mm_sfence(); }
  static vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
  static vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
  static vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
  static vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
  static vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
  static vf fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
  static vf max(vf a, vf b) { return _mm256_max_ps(a, b); }
  static vf min(vf a, vf b) { return _mm256_min_ps(a, b); }
  static vf round(vf a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static bool any_nan(vf a) { return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0; }
  // a where `where` is not 0, else b.
  static vf choose(vf where, vf a, vf b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(where, zero(), _CMP_NEQ_UQ));
  }
  static vi to_int(vf a) { return _mm256_cvtps_epi32(a); }
  static vf to_float(vi a) { return _mm256_cvtepi32_ps(a); }
  static vi load_int(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store_int(int32_t* p, vi a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static vi set1_int(int32_t a) { return _mm256_set1_epi32(a); }
  static vi add_int(vi a, vi b) { return _mm256_add_epi32(a, b); }
  static vi sub_int(vi a, vi b) { return _mm256_sub_epi32(a, b); }
  static vi mul_int(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
  static vi both_int(vi a, vi b) { return _mm256_and_si256(a, b); }
  static vi min_int(vi a, vi b) { return _mm256_min_epi32(a, b); }
  static vi shift_right(vi a, vi k) { return _mm256_srlv_epi32(a, k); }
  static bool any_zero(vi a) {
    return _mm256_movemask_epi8(_mm256_cmpeq_epi32(a, _mm256_setzero_si256())) != 0;
  }
  // Bytes as words.
  static vi load_words(const void* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  // One bit per lane in which they differ.
  static uint32_t differing(vi a, vi b) {
    return 0xffu ^
           static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b))));
  }
  // Lanes from n on are 0.
  static vi keep(vi a, int64_t n) {
    const vi lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_and_si256(a, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), lane));
  }
  // W codes as bytes, side by side.
  typedef __m128i vb;
  static vb bytes(vi a) {
    const __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    return _mm_packus_epi16(h, h);
  }
  // Codes of b join those of a, k bits further up.
  static vb either(vb a, vb b, int k) { return _mm_or_si128(a, _mm_slli_epi16(b, k)); }
  static void store_bytes(uint8_t* p, vb a) { _mm_storel_epi64(reinterpret_cast<vb*>(p), a); }
  static void store_u8(uint8_t* p, vi a) { store_bytes(p, bytes(a)); }
  // Four vectors of codes, side by side.
  static void store_four(uint8_t* p, const vi* a) {
    const vi bytes =
        _mm256_packus_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(a[2], a[3]));
    const vi in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    store_int(reinterpret_cast<int32_t*>(p), _mm256_permutevar8x32_epi32(bytes, in_order));
  }
  static vb no_bytes() { return _mm_setzero_si128(); }
  // To field K of each byte, how many of the thresholds, W of each code side by side, y reaches.
  template <int BITS, int K> static vb add_reached(vb packed, vf y, const float* thresholds) {
    vi count = _mm256_setzero_si256();
    for (int n = 0; n < (1 << BITS) - 1; ++n) {
      const vf reached = _mm256_cmp_ps(y, load(thresholds + n * W), _CMP_GE_OQ);
      count = _mm256_sub_epi32(count, _mm256_castps_si256(reached));
    }
    return either(packed, bytes(count), BITS * K);
  }
  static vf load_field(const uint8_t* p, int shift, int mask) {
    const vi x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const vi y = _mm256_srl_epi32(x, _mm_cvtsi32_si128(shift));
    return _mm256_cvtepi32_ps(_mm256_and_si256(y, _mm256_set1_epi32(mask)));
  }
  static constexpr int kTable = 8;
  static vf lookup(vf table, const int32_t* index) {
    return _mm256_permutevar8x32_ps(table, load_int(index));
  }
  static vf gather(const float* table, vi index) { return _mm256_i32gather_ps(table, index, 4); }
  static vi load_int_partial(const int32_t* p, int64_t n) {
    const vi lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_epi32(p,
                                 _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? int(n) : 8), lane));
  }
  static float largest(vf a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static vf between(vf a, vf low, vf high) {
    const vf inside =
        _mm256_and_ps(_mm256_cmp_ps(a, low, _CMP_GE_OQ), _mm256_cmp_ps(a, high, _CMP_LE_OQ));
    return _mm256_and_ps(inside, set1(1.f));
  }
  static double sum(vf a) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    const __m256d s = _mm256_add_pd(low, high);
    const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
  }
};

struct Bytes {
  static constexpr int N = 32;
  typedef __m256i v;
  static v zero() { return _mm256_setzero_si256(); }
  static v set1(int a) { return _mm256_set1_epi8(static_cast<char>(a)); }
  static v low_bytes() { return _mm256_set1_epi16(0xff); }
  static v add8(v a, v b) { return _mm256_add_epi8(a, b); }
  static v add16(v a, v b) { return _mm256_add_epi16(a, b); }
  static v sub16(v a, v b) { return _mm256_sub_epi16(a, b); }
  static v both(v a, v b) { return _mm256_and_si256(a, b); }
  template <int K> static v right16(v a) { return K ? _mm256_srli_epi16(a, K) : a; }
  template <int K> static v left16(v a) { return _mm256_slli_epi16(a, K); }
  // All bytes in order, 8 to a vector of int32.
  static void widen8(v a, __m256i* out) {
    const __m128i low = _mm256_castsi256_si128(a), high = _mm256_extracti128_si256(a, 1);
    out[0] = _mm256_cvtepu8_epi32(low);
    out[1] = _mm256_cvtepu8_epi32(_mm_srli_si128(low, 8));
    out[2] = _mm256_cvtepu8_epi32(high);
    out[3] = _mm256_cvtepu8_epi32(_mm_srli_si128(high, 8));
  }
  // The same for words that belong to the even and to the odd bytes.
  static void widen16(v even, v odd, __m256i* out) {
    const v low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    out[0] = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(low));
    out[1] = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(high));
    out[2] = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(low, 1));
    out[3] = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(high, 1));
  }
  // R rows side by side, each N / R bytes.
  template <int R> static v load_rows(const uint8_t* const* p) {
    if (R == 1) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p[0]));
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p[0]))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[R - 1])), 1);
  }
};

// Four unsigned bytes times four signed bytes, summed into each int32.
#if defined(QLR_BYTE_DOTS)
template <int>
inline __m256i dot4(__m256i acc, __m256i codes, __m256i digits) {
#if defined(QLR_EMULATED_VNNI)
  const __m256i low = _mm256_set1_epi16(0xff);
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(digits, 8), 8);
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_and_si256(codes, low), even));
  const __m256i odd = _mm256_srai_epi16(digits, 8);
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), odd));
#else
  // An intrinsic makes GCC 12 copy every accumulator to and fro.
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(codes), "x"(digits));
  return acc;
#endif
}
#else
// Products of two are summed in 16 bits first, which holds for codes of at most 4 bits; wider codes are
// taken in two halves, the upper one weighted by 16.
template <int B>
inline __m256i dot4(__m256i acc, __m256i codes, __m256i digits) {
  const __m256i one = _mm256_set1_epi16(1);
  if (B <= 4)
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, digits), one));
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  const __m256i low = _mm256_and_si256(codes, nibble);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(low, digits), one));
  return _mm256_add_epi32(
      acc, _mm256_madd_epi16(_mm256_maddubs_epi16(high, digits), _mm256_set1_epi16(16)));
}
#endif

// Products of rows with panels: four unsigned bytes times four signed ones. Where both need all of 8
// bits, and the processor has no dot product of bytes, they are words, two times two, which takes half
// as long as the halves of a byte.
struct Dot {
  static constexpr int W = 8;
  static constexpr int64_t kInputs = 4;  // are padded to a multiple of this
#if defined(QLR_BYTE_DOTS)
  template <int B> using Code = uint8_t;
  template <int B> using Weight = int8_t;
#else
  template <int B> using Code = std::conditional_t<B == 8, int16_t, uint8_t>;
  template <int B> using Weight = std::conditional_t<B == 8, int16_t, int8_t>;
#endif
  typedef __m256i v;
  static v load_sums(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const v*>(p)); }
  static v repeat4(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  static v load(const void* p) { return _mm256_loadu_si256(reinterpret_cast<const v*>(p)); }
  template <int B> static v dot(v acc, v a, v b) {
    if constexpr (sizeof(Weight<B>) == 2) return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
    else return dot4<B>(acc, a, b);
  }
  static void store(int32_t* p, v a) { _mm256_storeu_si256(reinterpret_cast<v*>(p), a); }
#if defined(QLR_BYTE_DOTS)
  static constexpr bool kWords = false;
#else
  // Small products are summed in 16 bits, and widened before these overflow.
  static constexpr bool kWords = true;
#endif
  static v zero() { return _mm256_setzero_si256(); }
  static v add_pairs(v acc, v codes, v weights) {
    return _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, weights));
  }
  static v add_words(v acc, v words) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
  }
};

}  // namespace
}  // namespace avx2
}  // namespace qlr
