// Vectors of 4 floats, and dot products of bytes, for aarch64. Included with them switched on. Gathers
// of codes have files of their own; what is not there is plain C++, see kernels/all.inl.
#pragma once

#define QLR_NEON
#define QLR_PLAIN

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace qlr {
namespace neon {
namespace {

struct F {
  static constexpr int W = 4;
  static constexpr bool kFused = true;  // whether fma and fnma round once
  typedef float32x4_t vf;
  typedef int32x4_t vi;
  static vf zero() { return vdupq_n_f32(0.f); }
  static vf set1(float a) { return vdupq_n_f32(a); }
  static vf load(const float* p) { return vld1q_f32(p); }
  static vf load_partial(const float* p, int64_t n) {
    float few[W] = {0.f, 0.f, 0.f, 0.f};
    std::memcpy(few, p, (n < 0 ? 0 : n < W ? n : W) * sizeof(float));
    return load(few);
  }
  static void store(float* p, vf a) { vst1q_f32(p, a); }
  // Past the caches, to an address of a whole vector; fence() before anyone else reads.
  static void stream(float* p, vf a) { store(p, a); }
  static void fence() {}
  static vf add(vf a, vf b) { return vaddq_f32(a, b); }
  static vf sub(vf a, vf b) { return vsubq_f32(a, b); }
  static vf mul(vf a, vf b) { return vmulq_f32(a, b); }
  static vf div(vf a, vf b) { return vdivq_f32(a, b); }
  static vf fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
  static vf fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
  // In this order a NaN in `a` becomes `b`, as everywhere; those of NEON would keep it.
  static vf max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static vf min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static vf round(vf a) { return vrndnq_f32(a); }
  static bool any_nan(vf a) { return vminvq_u32(vceqq_f32(a, a)) == 0; }
  // a where `where` is not 0, else b.
  static vf choose(vf where, vf a, vf b) { return vbslq_f32(vceqzq_f32(where), b, a); }
  static vi to_int(vf a) { return vcvtnq_s32_f32(a); }
  static vf to_float(vi a) { return vcvtq_f32_s32(a); }
  static vi load_int(const int32_t* p) { return vld1q_s32(p); }
  static vi set1_int(int32_t a) { return vdupq_n_s32(a); }
  static vi add_int(vi a, vi b) { return vaddq_s32(a, b); }
  static vi sub_int(vi a, vi b) { return vsubq_s32(a, b); }
  static vi mul_int(vi a, vi b) { return vmulq_s32(a, b); }
  static vi both_int(vi a, vi b) { return vandq_s32(a, b); }
  static vi min_int(vi a, vi b) { return vminq_s32(a, b); }
  static vi shift_right(vi a, vi k) { return vshlq_s32(a, vnegq_s32(k)); }
  static bool any_zero(vi a) { return vmaxvq_u32(vceqzq_s32(a)) != 0; }
  // Bytes as words.
  static vi load_words(const void* p) {
    return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  // One bit per lane in which they differ.
  static uint32_t differing(vi a, vi b) {
    const uint32_t bit[W] = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(vld1q_u32(bit), vceqq_s32(a, b)));
  }
  // Lanes from n on are 0.
  static vi keep(vi a, int64_t n) {
    const int32_t lane[W] = {0, 1, 2, 3};
    const int32_t count = n < 0 ? 0 : n < W ? static_cast<int32_t>(n) : W;
    return vandq_s32(a, vreinterpretq_s32_u32(vcltq_s32(load_int(lane), set1_int(count))));
  }
  // W codes as bytes, side by side.
  typedef uint32_t vb;
  static vb bytes(vi a) {
    const uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(a));
    return vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
  }
  // Codes of b join those of a, k bits further up.
  static vb either(vb a, vb b, int k) { return a | b << k; }
  static void store_bytes(uint8_t* p, vb a) { std::memcpy(p, &a, sizeof(a)); }
  static void store_u8(uint8_t* p, vi a) { store_bytes(p, bytes(a)); }
  // Four vectors of codes, side by side.
  static void store_four(uint8_t* p, const vi* a) {
    const auto words = [](vi low, vi high) {
      return vcombine_u16(vmovn_u32(vreinterpretq_u32_s32(low)),
                          vmovn_u32(vreinterpretq_u32_s32(high)));
    };
    vst1q_u8(p, vcombine_u8(vmovn_u16(words(a[0], a[1])), vmovn_u16(words(a[2], a[3]))));
  }
  static vb no_bytes() { return 0; }
  // To field K of each byte, how many of the thresholds, W of each code side by side, y reaches.
  template <int BITS, int K> static vb add_reached(vb packed, vf y, const float* thresholds) {
    vi count = set1_int(0);
    for (int n = 0; n < (1 << BITS) - 1; ++n)
      count = vsubq_s32(count, vreinterpretq_s32_u32(vcgeq_f32(y, load(thresholds + n * W))));
    return either(packed, bytes(count), BITS * K);
  }
  // The field of each byte, as floats.
  static vf load_field(const uint8_t* p, int shift, int mask) {
    uint32_t four;
    std::memcpy(&four, p, sizeof(four));
    const uint16x8_t words = vmovl_u8(vcreate_u8(four));
    const uint32x4_t codes = vshlq_u32(vmovl_u16(vget_low_u16(words)), vdupq_n_s32(-shift));
    return vcvtq_f32_u32(vandq_u32(codes, vdupq_n_u32(static_cast<uint32_t>(mask))));
  }
  // table[index], index below kTable.
  static constexpr int kTable = 4;
  static vf lookup(vf table, const int32_t* index) {
    const uint32x4_t first = vmulq_n_u32(vreinterpretq_u32_s32(load_int(index)), 0x04040404u);
    const uint8x16_t at = vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x03020100u)));
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(table), at));
  }
  static vf gather(const float* table, vi index) {
    int32_t at[W];
    vst1q_s32(at, index);
    const float found[W] = {table[at[0]], table[at[1]], table[at[2]], table[at[3]]};
    return load(found);
  }
  static vi load_int_partial(const int32_t* p, int64_t n) {
    int32_t few[W] = {0, 0, 0, 0};
    std::memcpy(few, p, (n < 0 ? 0 : n < W ? n : W) * sizeof(int32_t));
    return load_int(few);
  }
  // 1 where low <= a <= high, else 0.
  static vf between(vf a, vf low, vf high) {
    const uint32x4_t inside = vandq_u32(vcgeq_f32(a, low), vcleq_f32(a, high));
    return vreinterpretq_f32_u32(vandq_u32(inside, vreinterpretq_u32_f32(set1(1.f))));
  }
  static double sum(vf a) {
    return vaddvq_f64(vaddq_f64(vcvt_f64_f32(vget_low_f32(a)), vcvt_high_f64_f32(a)));
  }
  static float largest(vf a) { return vmaxvq_f32(a); }
};

// Four unsigned bytes times four unsigned bytes, summed into each int32: a product of bytes with and
// without a sign is not in every processor that has this one.
struct Dot {
  static constexpr int W = 4;
  static constexpr int64_t kInputs = 4;  // are padded to a multiple of this
  template <int B> using Code = uint8_t;
  template <int B> using Weight = uint8_t;
  typedef uint32x4_t v;
  static v load_sums(const int32_t* p) { return vreinterpretq_u32_s32(vld1q_s32(p)); }
  static v repeat4(const uint8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof(four));
    return vdupq_n_u32(four);
  }
  static v load(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
  template <int B> static v dot(v acc, v a, v b) {
    return vdotq_u32(acc, vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b));
  }
  static void store(int32_t* p, v a) { vst1q_s32(p, vreinterpretq_s32_u32(a)); }
  static constexpr bool kWords = false;
};

}  // namespace
}  // namespace neon
}  // namespace qlr
