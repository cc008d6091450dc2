// Weighted sums of packed rows with AVX2: out[f] (+)= sum of weight times (code - center).
//
// The weights of a block are written as 23-bit fixed point relative to the largest of them, in
// three signed 8-bit digits. Bytes of four rows are interleaved, so that one dot product of four
// codes with four digits adds four edges to an int32; no product of floats is taken per edge. The
// center is subtracted from the integers, where nothing is lost. The error against float32 weights
// is 2^-23 of the largest weight in the block, less than that of summing in float32.

template <int>
struct Digits {
  static constexpr bool kLasting = false;  // none outlives its block
  static constexpr int kCount = 3;
  // Digits of at most 127 reach 127 * (2^16 + 2^8 + 1) = 8355711. A power of two below it makes
  // sums with equal weights exact.
  static constexpr float kTop = 4194304.f;

  alignas(64) int8_t plane[kCount][kBlockEdges + 32];
  int32_t sum[kCount];
  float unit;

  // `count` is padded up to whole groups of 8 with digits of zero, as the values are.
  void fill(const WeightBlock& block, int count, int32_t) {
    F::vf top = F::zero(), all = F::zero();
    for (int i = 0; i < count; i += F::W) {
      const F::vf w = F::load_partial(block.value + i, count - i);
      top = F::max(top, F::max(w, F::sub(F::zero(), w)));
      all = F::add(all, w);
    }
    const float largest = F::largest(top);
    // Adding 0 * sum carries a NaN or an infinity into the result.
    const bool tiny = !(largest > 1e-30f);
    unit = (tiny ? 0.f : largest / kTop) + 0.f * static_cast<float>(F::sum(all));
    const __m256 inverse = _mm256_set1_ps(tiny ? 0.f : kTop / largest);
    // With 0x80 added to every digit the digits are the bytes of one non-negative number.
    const __m256i bias = _mm256_set1_epi32(0x808080);
    const __m256i by_plane = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i join = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < count; i += 8) {
      const __m256 w = _mm256_mul_ps(F::load_partial(block.value + i, count - i), inverse);
      __m256i u = _mm256_add_epi32(_mm256_cvtps_epi32(w), bias);
      u = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(u, by_plane), join);
      total = _mm256_add_epi64(total, _mm256_sad_epu8(u, _mm256_setzero_si256()));
      u = _mm256_xor_si256(u, _mm256_set1_epi8(static_cast<char>(0x80)));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(plane[0] + i), _mm256_castsi256_si128(u));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(plane[1] + i),
                       _mm_unpackhi_epi64(_mm256_castsi256_si128(u), _mm256_castsi256_si128(u)));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(plane[2] + i), _mm256_extracti128_si256(u, 1));
    }
    alignas(32) int64_t sums[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums), total);
    const int32_t biased = 128 * ((count + 7) / 8 * 8);
    for (int d = 0; d < kCount; ++d) sum[d] = static_cast<int32_t>(sums[d]) - biased;
  }
};

// A pass over the edges of a block for NV of the four interleaved vectors, from vector Q on.
// PAIR: rows of 16 bytes, two groups of four side by side.
template <int B, int Q, int NV, bool PAIR>
struct WeightedPass {
  static constexpr int kFields = 8 / B;
  static constexpr int kGroup = PAIR ? 8 : 4;
  static constexpr int kUnit = PAIR ? 16 : 32;

  const PackedRows& rows;
  const Digits<B>& digits;
  int64_t offset;
  float* out;  // of the unit at `offset`

  static __m256i load(const uint8_t* const* p, int r) {
    if constexpr (PAIR)
      return _mm256_inserti128_si256(
          _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p[r]))),
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[r + 4])), 1);
    else return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p[r]));
  }
  // Vector q: the bytes 4 q .. 4 q + 3 of each 16-byte lane, of four rows each.
  template <int q>
  static __m256i interleave(const __m256i* x) {
    const __m256i ab = q < 2 ? _mm256_unpacklo_epi8(x[0], x[1]) : _mm256_unpackhi_epi8(x[0], x[1]);
    const __m256i cd = q < 2 ? _mm256_unpacklo_epi8(x[2], x[3]) : _mm256_unpackhi_epi8(x[2], x[3]);
    return q % 2 == 0 ? _mm256_unpacklo_epi16(ab, cd) : _mm256_unpackhi_epi16(ab, cd);
  }
  __m256i weights(int d, int i) const {
    if constexpr (PAIR) {
      int64_t eight;
      std::memcpy(&eight, digits.plane[d] + i, 8);
      return _mm256_permutevar8x32_epi32(_mm256_set1_epi64x(eight),
                                         _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    } else {
      int32_t four;
      std::memcpy(&four, digits.plane[d] + i, 4);
      return _mm256_set1_epi32(four);
    }
  }
  template <int k>
  static __m256i field(__m256i x) {
    if constexpr (B == 8) return x;
    const __m256i shifted = k ? _mm256_srli_epi16(x, B * k) : x;
    return _mm256_and_si256(shifted, _mm256_set1_epi8((1 << B) - 1));
  }
  template <int k = 0>
  static void add_fields(__m256i (*acc)[Digits<B>::kCount], __m256i x, const __m256i* w) {
    const __m256i code = field<k>(x);
    for (int d = 0; d < Digits<B>::kCount; ++d) acc[k][d] = dot4<B>(acc[k][d], code, w[d]);
    if constexpr (k + 1 < kFields) add_fields<k + 1>(acc, x, w);
  }
  typedef __m256i Sums[NV][kFields][Digits<B>::kCount];

  template <int n = 0>
  static void add_vectors(__m256i (*acc)[kFields][Digits<B>::kCount], const __m256i* x,
                          const __m256i* w) {
    add_fields(acc[n], interleave<Q + n>(x), w);
    if constexpr (n + 1 < NV) add_vectors<n + 1>(acc, x, w);
  }
  void step(Sums& acc, const uint8_t* const* p, int i) const {
    __m256i w[Digits<B>::kCount];
    for (int d = 0; d < Digits<B>::kCount; ++d) w[d] = weights(d, i);
    const __m256i x[4] = {load(p, 0), load(p, 1), load(p, 2), load(p, 3)};
    add_vectors(acc, x, w);
  }
  // The digits put together: an int32 times 2^16, 2^8 and 1.
  __m256 join(const __m256i* acc, int32_t center) const {
    __m256 part[Digits<B>::kCount];
    for (int d = 0; d < Digits<B>::kCount; ++d) {
      // Of a pair the halves are the sums of different edges for the same columns.
      const __m256i sum =
          PAIR ? _mm256_add_epi32(acc[d], _mm256_permute2x128_si256(acc[d], acc[d], 1)) : acc[d];
      part[d] =
          _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(center * digits.sum[d])));
    }
    const __m256 base = _mm256_set1_ps(256.f);
    return _mm256_mul_ps(_mm256_fmadd_ps(_mm256_fmadd_ps(part[2], base, part[1]), base, part[0]),
                         _mm256_set1_ps(digits.unit));
  }
  static void add_to(float* p, __m128 a) { _mm_store_ps(p, _mm_add_ps(_mm_load_ps(p), a)); }

  void run(int64_t e, int count, int64_t ahead, int32_t center) const {
    Sums acc;
    for (int n = 0; n < NV; ++n)
      for (int k = 0; k < kFields; ++k)
        for (int d = 0; d < Digits<B>::kCount; ++d) acc[n][k][d] = _mm256_setzero_si256();
    const uint8_t* p[kGroup];
    int i = 0;
    for (; i + kGroup <= count; i += kGroup) {
      for (int r = 0; r < kGroup; ++r) p[r] = rows.row(e + i + r) + offset;
      if (ahead)
        for (int r = 0; r < kGroup; ++r) rows.prefetch(e + i + r, 0, ahead);
      step(acc, p, i);
    }
    if (i < count) {  // the digits past the end are zero, so any row will do
      for (int r = 0; r < kGroup; ++r) p[r] = rows.row(e + std::min(i + r, count - 1)) + offset;
      if (ahead)
        for (int r = i; r < count; ++r) rows.prefetch(e + r, 0, ahead);
      step(acc, p, i);
    }
    for (int n = 0; n < NV; ++n)
      for (int k = 0; k < kFields; ++k) {
        const __m256 y = join(acc[n][k], center);
        float* to = out + k * kUnit + 4 * (Q + n);
        add_to(to, _mm256_castps256_ps128(y));
        if (!PAIR) add_to(to + 16, _mm256_extractf128_ps(y, 1));
      }
  }
};

// All four vectors of a unit, NV at a time; the first pass asks for the rows ahead.
template <int B, int NV, bool PAIR, int Q = 0>
inline void weighted_unit(const PackedRows& rows, const Digits<B>& digits, int64_t e, int count,
                          int64_t offset, int64_t ahead, int32_t center, float* out) {
  const int64_t at = offset * (8 / B);
  WeightedPass<B, Q, NV, PAIR>{rows, digits, offset, out + at}.run(e, count, ahead, center);
  if constexpr (Q + NV < 4)
    weighted_unit<B, NV, PAIR, Q + NV>(rows, digits, e, count, offset, 0, center, out);
}

// All columns of one block of at most kBlockEdges edges.
template <int B>
inline void weighted_block(const PackedRows& rows, const WeightBlock&, const Digits<B>& digits,
                           int64_t e, int count, int32_t center, float* out, bool first) {
  if (first) std::memset(out, 0, rows.layout.padded_cols() * sizeof(float));
  // As many sums as the register file holds: 12 of 16.
  constexpr int kVectors = B == 8 ? 4 : B == 4 ? 2 : 1;
  const int64_t stride = rows.layout.stride;
  if (stride == 16)
    return weighted_unit<B, kVectors, true>(rows, digits, e, count, 0, 16, center, out);
  int64_t offset = 0;
  for (; offset < stride; offset += 32)
    weighted_unit<B, kVectors, false>(rows, digits, e, count, offset, offset ? 0 : stride, center,
                                      out);
}

inline int32_t edge_digits(const QlrGraph&, int32_t*, int) { return QLR_UNSUPPORTED; }
