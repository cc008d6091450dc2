// Element-wise maximum or minimum of packed rows. A field keeps its order where it lies in the
// byte, so codes are compared under a mask and shifted once at the end of the row.

template <int B, bool MAX>
inline void extremum_row(const PackedRows& rows, int64_t e, int64_t end, int32_t* out) {
  constexpr int kFields = 8 / B;
  const int64_t stride = rows.layout.stride;
  const int unit = rows.layout.unit;
  for (int64_t offset = 0; offset < stride; offset += unit) {
    __m256i best[kFields], mask[kFields];
    for (int k = 0; k < kFields; ++k) {
      mask[k] = _mm256_set1_epi8(static_cast<char>(((1 << B) - 1) << (B * k)));
      best[k] = MAX ? _mm256_setzero_si256() : mask[k];
    }
    for (int64_t i = e; i < end; ++i) {
      if (offset == 0) rows.prefetch(i, 0, stride);
      const uint8_t* p = rows.row(i) + offset;
      const __m256i x =
          unit == 32
              ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
              : _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      for (int k = 0; k < kFields; ++k) {
        const __m256i code = _mm256_and_si256(x, mask[k]);
        best[k] = MAX ? _mm256_max_epu8(best[k], code) : _mm256_min_epu8(best[k], code);
      }
    }
    for (int k = 0; k < kFields; ++k) {
      alignas(32) uint8_t bytes[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), best[k]);
      int32_t* to = out + (offset / unit * kFields + k) * unit;
      for (int j = 0; j < unit; ++j) to[j] = bytes[j] >> (B * k);
    }
  }
}
