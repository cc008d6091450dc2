// Sums of packed rows times weights that are integers, exact: acc[f] = sum of n times the code of f.
//
// Bytes of two rows are interleaved, so that one multiplication adds two edges in 16 bits; before
// these could overflow they are added to int32. Codes of 8 bits, whose products leave 16 bits, are
// words to begin with and are added in int32 at once. 256 bits serve every instruction set that has
// them: what a row costs besides its bytes is mostly independent of the width.

// The interleaved rows of a pair, for VECTORS vectors of bytes side by side. NARROW: of 16 bytes.
template <bool NARROW, int VECTORS>
struct PairOfRows {
  static constexpr int kParts = NARROW ? 1 : 2 * VECTORS;
  __m256i part[kParts];

  QLR_ALWAYS_INLINE PairOfRows(const uint8_t* a, const uint8_t* b) {
    if constexpr (NARROW) {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
      const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
      part[0] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(x, y)),
                                        _mm_unpackhi_epi8(x, y), 1);
    } else {
      for (int v = 0; v < VECTORS; ++v) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + 32 * v));
        const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 32 * v));
        part[2 * v] = _mm256_unpacklo_epi8(x, y);
        part[2 * v + 1] = _mm256_unpackhi_epi8(x, y);
      }
    }
  }
  // Bytes of the rows that the lower and the upper half of a part begin with.
  static constexpr int low(int p) { return NARROW ? 0 : p / 2 * 32 + p % 2 * 8; }
  static constexpr int high(int p) { return NARROW ? 8 : low(p) + 16; }
};

// One pass over the edges of a row, for the bytes from `offset` on and NK fields from K on.
template <int B, bool NARROW, int VECTORS, int K, int NK, bool AHEAD>
struct CodedPass {
  typedef PairOfRows<NARROW, VECTORS> Pair;
  static constexpr int kFields = 8 / B;
  static constexpr int kUnit = NARROW ? 16 : 32;
  // Edges whose products fit into 16 bits, an even number; a weight may be as low as -128.
  static constexpr int64_t kRun = 2 * (32767 / (2 * 128 * ((1 << B) - 1)));

  const PackedRows& rows;
  const int8_t* codes;  // of edge 0
  int64_t offset;
  int32_t* acc;  // sums of the unit at `offset`

  template <int k>
  static QLR_ALWAYS_INLINE __m256i field(__m256i x) {
    const __m256i shifted = k > 0 ? _mm256_srli_epi16(x, B * k) : x;
    return _mm256_and_si256(shifted, _mm256_set1_epi8((1 << B) - 1));
  }
  template <int k = 0>
  static QLR_ALWAYS_INLINE void add_fields(__m256i* sum, __m256i x, __m256i n) {
    sum[k] = _mm256_add_epi16(sum[k], _mm256_maddubs_epi16(field<K + k>(x), n));
    if constexpr (k + 1 < NK) add_fields<k + 1>(sum, x, n);
  }
  const uint8_t* row(int64_t e) const { return rows.row(e) + offset; }
  void ask(int64_t e) const {
    if constexpr (AHEAD) {
      rows.prefetch(e, offset, NARROW ? 16 : 32 * VECTORS);
      rows.prefetch(e + 1, offset, NARROW ? 16 : 32 * VECTORS);
    }
  }
  int32_t* at(int byte, int k) const {
    return acc + (byte / kUnit * kFields + k) * kUnit + byte % kUnit;
  }
  static void add_eight(int32_t* to, __m128i words, bool first) {
    const __m256i sum = _mm256_cvtepi16_epi32(words);
    __m256i* const p = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(p, first ? sum : _mm256_add_epi32(sum, _mm256_loadu_si256(p)));
  }
  static void add_four(int32_t* to, __m128i sum, bool first) {
    __m128i* const p = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(p, first ? sum : _mm_add_epi32(sum, _mm_loadu_si128(p)));
  }

  // Codes of up to 4 bits.
  void words(int64_t e, int64_t end) const {
    bool first = true;
    do {
      __m256i sum[Pair::kParts][NK];
      for (int p = 0; p < Pair::kParts; ++p)
        for (int k = 0; k < NK; ++k) sum[p][k] = _mm256_setzero_si256();
      const int64_t stop = std::min(end, e + kRun);
      for (; e + 2 <= stop; e += 2) {
        ask(e);
        uint16_t two;
        std::memcpy(&two, codes + e, 2);
        step(sum, Pair(row(e), row(e + 1)), _mm256_set1_epi16(static_cast<int16_t>(two)));
      }
      if (e < stop) {  // only the last of all: runs are even
        const uint8_t* const last = row(e);
        step(sum, Pair(last, last), _mm256_set1_epi16(static_cast<uint8_t>(codes[e])));
        ++e;
      }
      for (int p = 0; p < Pair::kParts; ++p)
        for (int k = 0; k < NK; ++k) {
          add_eight(at(Pair::low(p), K + k), _mm256_castsi256_si128(sum[p][k]), first);
          add_eight(at(Pair::high(p), K + k), _mm256_extracti128_si256(sum[p][k], 1), first);
        }
      first = false;
    } while (e < end);
  }
  static QLR_ALWAYS_INLINE void step(__m256i (*sum)[NK], const Pair& pair, __m256i n) {
    for (int p = 0; p < Pair::kParts; ++p) add_fields(sum[p], pair.part[p], n);
  }

  // Codes of 8 bits.
  void integers(int64_t e, int64_t end) const {
    __m256i sum[Pair::kParts][2];
    for (int p = 0; p < Pair::kParts; ++p) sum[p][0] = sum[p][1] = _mm256_setzero_si256();
    const auto step = [&](const Pair& pair, int32_t a, int32_t b) QLR_ALWAYS_INLINE {
      const __m256i n = _mm256_set1_epi32((a & 0xffff) | static_cast<int32_t>(uint32_t(b) << 16));
      const __m256i zero = _mm256_setzero_si256();
      for (int p = 0; p < Pair::kParts; ++p) {
        const __m256i low = _mm256_unpacklo_epi8(pair.part[p], zero);
        const __m256i high = _mm256_unpackhi_epi8(pair.part[p], zero);
        sum[p][0] = _mm256_add_epi32(sum[p][0], _mm256_madd_epi16(low, n));
        sum[p][1] = _mm256_add_epi32(sum[p][1], _mm256_madd_epi16(high, n));
      }
    };
    for (; e + 2 <= end; e += 2) {
      ask(e);
      step(Pair(row(e), row(e + 1)), codes[e], codes[e + 1]);
    }
    if (e < end) step(Pair(row(e), row(e)), codes[e], 0);
    for (int p = 0; p < Pair::kParts; ++p)
      for (int half = 0; half < 2; ++half) {
        add_four(at(Pair::low(p), 0) + 4 * half, _mm256_castsi256_si128(sum[p][half]), true);
        add_four(at(Pair::high(p), 0) + 4 * half, _mm256_extracti128_si256(sum[p][half], 1), true);
      }
  }
  void run(int64_t e, int64_t end) const {
    if constexpr (B == 8) integers(e, end);
    else words(e, end);
  }
};

// A pass for all fields, as many at once as the register file holds.
template <int B, bool NARROW, int VECTORS, bool AHEAD>
inline void coded_pass(const PackedRows& rows, const int8_t* codes, int64_t e, int64_t end,
                       int64_t offset, int32_t* acc) {
  constexpr int kFields = 8 / B;
  constexpr int kMost = kFields < 4 ? kFields : 4;
  int32_t* const to = acc + offset * kFields;
  CodedPass<B, NARROW, VECTORS, 0, kMost, AHEAD>{rows, codes, offset, to}.run(e, end);
  if constexpr (kMost < kFields)
    CodedPass<B, NARROW, VECTORS, kMost, kFields - kMost, false>{rows, codes, offset, to}.run(e,
                                                                                              end);
}

// All columns of one row that has edges. `acc` has room for padded_cols() sums.
template <int B, bool AHEAD>
inline void coded_row(const PackedRows& rows, const int8_t* codes, int64_t e, int64_t end,
                      int32_t* acc) {
  const int64_t stride = rows.layout.stride;
  if (stride == 16) return coded_pass<B, true, 1, AHEAD>(rows, codes, e, end, 0, acc);
  constexpr int kWide = B <= 2 ? 1 : 2;
  int64_t offset = 0;
  for (; offset + 32 * kWide <= stride; offset += 32 * kWide)
    coded_pass<B, false, kWide, AHEAD>(rows, codes, e, end, offset, acc);
  if constexpr (kWide > 1)
    if (offset < stride) coded_pass<B, false, 1, AHEAD>(rows, codes, e, end, offset, acc);
}
