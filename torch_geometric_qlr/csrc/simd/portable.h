// Vectors of one float: the kernels' text with plain C++ underneath.
#pragma once

#define QLR_PLAIN  // see kernels/all.inl

#include <cmath>
#include <cstdint>
#include <cstring>

namespace qlr {
namespace portable {

struct F {
  static constexpr int W = 1;
  static constexpr bool kFused = false;  // whether fma and fnma round once
  typedef float vf;
  typedef int32_t vi;
  static vf zero() { return 0.f; }
  static vf set1(float a) { return a; }
  static vf load(const float* p) { return *p; }
  static vf load_partial(const float* p, int64_t n) { return n > 0 ? *p : 0.f; }
  static void store(float* p, vf a) { *p = a; }
  // Past the caches, to an address of a whole vector; fence() before anyone else reads.
  static void stream(float* p, vf a) { *p = a; }
  static void fence() {}
  static vf add(vf a, vf b) { return a + b; }
  static vf sub(vf a, vf b) { return a - b; }
  static vf mul(vf a, vf b) { return a * b; }
  static vf div(vf a, vf b) { return a / b; }
  static vf fma(vf a, vf b, vf c) { return a * b + c; }
  static vf fnma(vf a, vf b, vf c) { return c - a * b; }
  // In this order a NaN in `a` becomes `b`, as in the vector instructions.
  static vf max(vf a, vf b) { return a > b ? a : b; }
  static vf min(vf a, vf b) { return a < b ? a : b; }
  static vf round(vf a) { return std::nearbyint(a); }
  static bool any_nan(vf a) { return a != a; }
  // a where `where` is not 0, else b.
  static vf choose(vf where, vf a, vf b) { return where != 0.f ? a : b; }
  static vi to_int(vf a) { return static_cast<int32_t>(std::nearbyint(a)); }
  static vf to_float(vi a) { return static_cast<float>(a); }
  static vi load_int(const int32_t* p) { return *p; }
  static vi set1_int(int32_t a) { return a; }
  static vi sub_int(vi a, vi b) { return static_cast<int32_t>(uint32_t(a) - uint32_t(b)); }
  static vi mul_int(vi a, vi b) { return static_cast<int32_t>(uint32_t(a) * uint32_t(b)); }
  static vi add_int(vi a, vi b) { return a + b; }
  static vi both_int(vi a, vi b) { return a & b; }
  static vi min_int(vi a, vi b) { return a < b ? a : b; }
  static vi shift_right(vi a, vi k) { return a >> k; }
  static bool any_zero(vi a) { return a == 0; }
  // Bytes as words.
  static vi load_words(const void* p) {
    vi a;
    std::memcpy(&a, p, sizeof(a));
    return a;
  }
  // One bit per lane in which they differ.
  static uint32_t differing(vi a, vi b) { return a != b; }
  // Lanes from n on are 0.
  static vi keep(vi a, int64_t n) { return n > 0 ? a : 0; }
  // W codes as bytes, side by side.
  typedef uint8_t vb;
  // Codes of b join those of a, k bits further up.
  static vb either(vb a, vb b, int k) { return static_cast<vb>(a | b << k); }
  static void store_bytes(uint8_t* p, vb a) { *p = a; }
  static void store_u8(uint8_t* p, vi a) { *p = static_cast<uint8_t>(a); }
  // Four vectors of codes, side by side.
  static void store_four(uint8_t* p, const vi* a) {
    for (int k = 0; k < 4; ++k) store_u8(p + k * W, a[k]);
  }
  static vb no_bytes() { return 0; }
  // To field K of each byte, how many of the thresholds, W of each code side by side, y reaches.
  template <int BITS, int K> static vb add_reached(vb bytes, vf y, const float* thresholds) {
    int count = 0;
    for (int n = 0; n < (1 << BITS) - 1; ++n) count += y >= thresholds[n];
    return either(bytes, static_cast<vb>(count), BITS * K);
  }
  // The field of each byte, as floats.
  static vf load_field(const uint8_t* p, int shift, int mask) {
    return static_cast<float>((*p >> shift) & mask);
  }
  // table[index], index below `size`.
  static constexpr int kTable = 1;
  static vf lookup(vf table, const int32_t*) { return table; }
  static vf gather(const float* table, vi index) { return table[index]; }
  static vi load_int_partial(const int32_t* p, int64_t n) { return n > 0 ? *p : 0; }
  // 1 where low <= a <= high, else 0, as a float and as a byte.
  static vf between(vf a, vf low, vf high) { return a >= low && a <= high ? 1.f : 0.f; }
  static double sum(vf a) { return a; }
  static float largest(vf a) { return a; }
};

// Four unsigned bytes times four signed bytes into an int32.
struct Dot {
  static constexpr int W = 1;
  static constexpr int64_t kInputs = 4;  // are padded to a multiple of this
  template <int B> using Code = uint8_t;
  template <int B> using Weight = int8_t;
  struct v {
    int32_t value[4];
  };
  static v load_sums(const int32_t* p) { return v{{*p, 0, 0, 0}}; }
  static v repeat4(const uint8_t* p) { return v{{p[0], p[1], p[2], p[3]}}; }
  static v load(const int8_t* p) { return v{{p[0], p[1], p[2], p[3]}}; }
  template <int B> static v dot(v acc, v a, v b) {
    for (int i = 0; i < 4; ++i) acc.value[i] += a.value[i] * b.value[i];
    return acc;
  }
  static void store(int32_t* p, v a) { *p = a.value[0] + a.value[1] + a.value[2] + a.value[3]; }
  static constexpr bool kWords = false;
};

}  // namespace portable
}  // namespace qlr
