// Weighted sums of packed rows with AVX-512 and VNNI: out[f] (+)= sum of weight times (code - center).
//
// As weighted_digits.inl does it, with digits relative to the largest weight of a block; but a field
// of a byte is masked and not shifted, so that its sums are too large by a power of two, which is
// taken back at the end of the row, and what the center takes away the sums begin with.

// The digits of up to kBlockEdges weights: of four edges the lowest, the middle ones, the highest, and
// four bytes of zeros. Digits past the last edge are zero.
struct DigitRow {
  __m128i lanes;  // the sums of each kind, and the bits of the float that the lowest count in

  // Digits of at most 127 reach 127 * (2^16 + 2^8 + 1) = 8355711. A power of two below it makes
  // sums with equal weights exact.
  static constexpr float kTop = 4194304.f;

  // EXACT: writes whole groups of four edges and no more, as others may lie behind them.
  template <bool EXACT>
  static DigitRow split(const float* weight, int count, int32_t* digits) {
    __m512 few = F::load_partial(weight, count);
    __m512i top = magnitude(few);
    for (int i = 16; i < count; i += 16)
      top = _mm512_max_epu32(top, magnitude(F::load_partial(weight + i, count - i)));
    const uint32_t bits = _mm512_reduce_max_epu32(top);
    float largest;
    std::memcpy(&largest, &bits, sizeof(largest));
    const bool finite = bits < 0x7f800000, counts = finite && largest > 1e-30f;
    const __m512 inverse = _mm512_set1_ps(counts ? kTop / largest : 0.f);
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < count; i += 16) {
      if (i > 0) few = F::load_partial(weight + i, count - i);
      const __m512i four = bytes(_mm512_cvtps_epi32(_mm512_mul_ps(few, inverse)));
      if constexpr (EXACT) _mm512_mask_storeu_epi32(digits + i, groups(count - i), four);
      else _mm512_storeu_si512(digits + i, four);  // a masked store would keep loads waiting
      total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), four);
    }
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(total), _mm512_extracti64x4_epi64(total, 1));
    const __m128i sums =
        _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const float unit = finite ? (counts ? largest * (1.f / kTop) : 0.f) : std::nanf("");
    return {_mm_insert_epi32(sums, _mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(unit))), 3)};
  }
  float unit() const { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_shuffle_epi32(lanes, 0xff))); }
  // The sum of the weights.
  float weight() const {
    const double count = 65536. * _mm_extract_epi32(lanes, 2) + 256. * _mm_extract_epi32(lanes, 1) +
                         _mm_cvtsi128_si32(lanes);
    return static_cast<float>(count * unit());
  }

 private:
  // As integers, which a NaN is the largest of.
  static __m512i magnitude(__m512 w) {
    return _mm512_and_si512(_mm512_castps_si512(w), _mm512_set1_epi32(0x7fffffff));
  }
  // The lanes of whole groups of four edges.
  static __mmask16 groups(int left) {
    return static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << ((left + 3) & ~3)) - 1);
  }
  // With 0x80 added to every digit they are the bytes of one non-negative number.
  static __m512i bytes(__m512i lanes) {
    const __m512i by_digit = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1));
    const __m512i sign = _mm512_maskz_set1_epi32(0x7777, static_cast<int>(0x80808080u));
    const __m512i biased = _mm512_add_epi32(lanes, _mm512_set1_epi32(0x808080));
    return _mm512_xor_si512(_mm512_shuffle_epi8(biased, by_digit), sign);
  }
};

// The digits of a graph: a DigitRow of every row, then groups of four edges. Those of row i begin at
// group rowptr[i] / 4 + i, which leaves room for every row. Rows of more than kBlockEdges have none.
inline int64_t first_digits(const QlrGraph& graph, int64_t i) {
  return 4 * (graph.rows + graph.rowptr[i] / 4 + i);
}

inline int32_t edge_digits(const QlrGraph& graph, int32_t* digits, int threads) {
  if (!valid_rowptr(graph)) return QLR_BAD_ROWPTR;
  parallel_rows(graph.rows, 64, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = graph.rowptr[i], count = graph.rowptr[i + 1] - begin;
      if (count > kBlockEdges) continue;
      const DigitRow row = DigitRow::split<true>(graph.edge_weight + begin, static_cast<int>(count),
                                                 digits + first_digits(graph, i));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + 4 * i), row.lanes);
    }
  });
  return QLR_OK;
}

// The digits of a block as a pass reads them.
template <int B>
struct Digits {
  static constexpr bool kLasting = true;
  static constexpr int kCount = 3;
  static constexpr int64_t kRowsAhead = 16;

  const int32_t* group;
  // For every field of a byte what the center takes away from the sums of every digit, and what the
  // sums are multiplied by in the end.
  alignas(16) int32_t start[8 / B][4];
  float unit[8 / B];

  DigitRow fill(const WeightBlock& block, int count, int32_t center) {
    const DigitRow row = DigitRow::split<false>(block.value, count, own_);
    set(row, own_, center);
    return row;
  }
  // Those of a whole row.
  DigitRow read(const QlrGraph& graph, int64_t i, int32_t center) {
    const int64_t ahead = std::min(i + kRowsAhead, graph.rows - 1);
    prefetch_line(graph.digits + 4 * ahead);
    prefetch_line(graph.digits + first_digits(graph, ahead));
    prefetch_line(graph.digits + first_digits(graph, ahead) + 16);
    const DigitRow row{_mm_loadu_si128(reinterpret_cast<const __m128i*>(graph.digits + 4 * i))};
    set(row, graph.digits + first_digits(graph, i), center);
    return row;
  }

 private:
  void set(const DigitRow& row, const int32_t* digits, int32_t center) {
    group = digits;
    const __m128i taken = _mm_mullo_epi32(row.lanes, _mm_set1_epi32(-center));
    const float of_first = row.unit();
    for (int k = 0; k < 8 / B; ++k) {
      _mm_store_si128(reinterpret_cast<__m128i*>(start[k]), _mm_slli_epi32(taken, B * k));
      unit[k] = of_first / static_cast<float>(1 << (B * k));
    }
  }
  alignas(64) int32_t own_[kBlockEdges + 16];
};

// BYTES of four rows as vectors whose 32-bit lanes hold a byte of each; and vectors of such lanes,
// brought to the order of the bytes.
template <int BYTES>
struct Interleaved;

template <>
struct Interleaved<16> {
  QLR_ALWAYS_INLINE static void load(const uint8_t* const* p, __m512i* x) {
    __m512i rows = _mm512_castsi128_si512(quarter(p[0]));
    rows = _mm512_inserti32x4(rows, quarter(p[1]), 1);
    rows = _mm512_inserti32x4(rows, quarter(p[2]), 2);
    rows = _mm512_inserti32x4(rows, quarter(p[3]), 3);
    const __m512i fours = _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), rows);
    x[0] = _mm512_shuffle_epi8(fours, _mm512_broadcast_i32x4(_mm_setr_epi8(
                                          0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  }
  QLR_ALWAYS_INLINE static void order(__m512*) {}

 private:
  static __m128i quarter(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
};

template <>
struct Interleaved<32> {
  QLR_ALWAYS_INLINE static void load(const uint8_t* const* p, __m512i* x) {
    const __m512i even = _mm512_inserti64x4(_mm512_castsi256_si512(half(p[0])), half(p[2]), 1);
    const __m512i odd = _mm512_inserti64x4(_mm512_castsi256_si512(half(p[1])), half(p[3]), 1);
    // Words are rows 0 and 1 in the lower lanes, 2 and 3 in the upper ones.
    const __m512i pairs =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    x[0] = _mm512_permutexvar_epi16(pairs, _mm512_unpacklo_epi8(even, odd));
    x[1] = _mm512_permutexvar_epi16(pairs, _mm512_unpackhi_epi8(even, odd));
  }
  // Vector 0 has bytes 0 to 7 and 16 to 23, vector 1 the others.
  QLR_ALWAYS_INLINE static void order(__m512* y) {
    const __m512 low = _mm512_shuffle_f32x4(y[0], y[1], 0x44);
    y[1] = _mm512_shuffle_f32x4(y[0], y[1], 0xee);
    y[0] = low;
  }

 private:
  static __m256i half(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
};

template <>
struct Interleaved<64> {
  QLR_ALWAYS_INLINE static void load(const uint8_t* const* p, __m512i* x) {
    const __m512i a = _mm512_loadu_si512(p[0]), b = _mm512_loadu_si512(p[1]);
    const __m512i c = _mm512_loadu_si512(p[2]), d = _mm512_loadu_si512(p[3]);
    const __m512i low_ab = _mm512_unpacklo_epi8(a, b), low_cd = _mm512_unpacklo_epi8(c, d);
    const __m512i high_ab = _mm512_unpackhi_epi8(a, b), high_cd = _mm512_unpackhi_epi8(c, d);
    x[0] = _mm512_unpacklo_epi16(low_ab, low_cd);
    x[1] = _mm512_unpackhi_epi16(low_ab, low_cd);
    x[2] = _mm512_unpacklo_epi16(high_ab, high_cd);
    x[3] = _mm512_unpackhi_epi16(high_ab, high_cd);
  }
  // Vector q has the bytes 4 q to 4 q + 3 of every 16.
  QLR_ALWAYS_INLINE static void order(__m512* y) {
    const __m512 low_01 = _mm512_shuffle_f32x4(y[0], y[1], 0x44);
    const __m512 high_01 = _mm512_shuffle_f32x4(y[0], y[1], 0xee);
    const __m512 low_23 = _mm512_shuffle_f32x4(y[2], y[3], 0x44);
    const __m512 high_23 = _mm512_shuffle_f32x4(y[2], y[3], 0xee);
    y[0] = _mm512_shuffle_f32x4(low_01, low_23, 0x88);
    y[1] = _mm512_shuffle_f32x4(low_01, low_23, 0xdd);
    y[2] = _mm512_shuffle_f32x4(high_01, high_23, 0x88);
    y[3] = _mm512_shuffle_f32x4(high_01, high_23, 0xdd);
  }
};

// A pass over the edges of a block for PIECES of BYTES bytes in units of UNIT, of which only the first
// PLANES fields are summed. STRIDE is that of the rows, or 0 if it is not known yet. Sums have to stay
// in registers: their indices are constants from the start, not after loops have been unrolled.
template <int B, int UNIT, int BYTES, int PIECES, int STRIDE, int PLANES = 8 / B>
struct WeightedPass {
  static constexpr int kDigits = Digits<B>::kCount, kVectors = BYTES / 16;
  static constexpr int kSums = kVectors * PLANES;  // of a piece: vectors times fields
  struct Sums {
    __m512i digit[PIECES * kSums * kDigits];
  };
  typedef std::make_integer_sequence<int, PIECES> Pieces;
  typedef std::make_integer_sequence<int, kSums> PieceSums;

  const PackedRows& rows;
  const Digits<B>& digits;
  int64_t offset;    // byte of the row where the pass begins
  float* out;        // of the row
  bool first, asks;  // whether sums begin, and whether rows ahead are asked for

  // Inlined, it would share the registers.
  QLR_NEVER_INLINE void run(int64_t e, int count) const {
    Sums sums = begin(std::make_integer_sequence<int, PIECES * kSums * kDigits>());
    const uint8_t* const data = rows.data + offset;
    const int32_t *col = rows.col + e, *group = digits.group;
    const bool inside = asks && e + count + 3 + kPrefetch <= rows.edges;  // whole groups of four
    if (asks && !inside) ask_in_bounds(e, count);
    for (; count > 0; count -= 4, col += 4, group += 4) {
      const uint8_t* p[4];
      if (QLR_LIKELY(count >= 4)) {
        for (int r = 0; r < 4; ++r) p[r] = data + col[r] * stride();
      } else {  // the digits past the end are zero, so any row will do
        for (int r = 0; r < 4; ++r) p[r] = data + col[std::min(r, count - 1)] * stride();
      }
      if (inside)
        for (int r = 0; r < 4; ++r) ask(data + col[r + kPrefetch] * stride());
      step(sums, p, group, Pieces());
    }
    if (first) store<true>(sums, Pieces());
    else store<false>(sums, Pieces());
  }

 private:
  int64_t stride() const { return STRIDE ? STRIDE : rows.layout.stride; }

  void ask(const uint8_t* row) const {
    for (int64_t b = 0; b < stride(); b += 64) prefetch_line(row + b);
  }
  QLR_NEVER_INLINE void ask_in_bounds(int64_t e, int count) const {
    for (int i = 0; i < count; ++i)
      ask(rows.data + rows.col[std::min(e + i + kPrefetch, rows.edges - 1)] * stride());
  }
  template <int... N>
  QLR_ALWAYS_INLINE Sums begin(std::integer_sequence<int, N...>) const {
    return {{_mm512_set1_epi32(digits.start[N / kDigits % PLANES][N % kDigits])...}};
  }
  template <int K>
  QLR_ALWAYS_INLINE static __m512i field(__m512i x) {
    if constexpr (B == 8) return x;
    else return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(((1 << B) - 1) << (B * K))));
  }
  QLR_ALWAYS_INLINE static void add(__m512i& sum, __m512i codes, const int32_t* digit) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*digit));
  }
  template <int K>
  QLR_ALWAYS_INLINE static void add_field(__m512i* sum, __m512i x, const int32_t* group) {
    const __m512i codes = field<K>(x);
    add(sum[0], codes, group);
    add(sum[1], codes, group + 1);
    add(sum[2], codes, group + 2);
  }
  template <int U, int... M>
  QLR_ALWAYS_INLINE static void add_piece(Sums& sums, const uint8_t* const* p, const int32_t* group,
                                          std::integer_sequence<int, M...>) {
    const uint8_t* const q[4] = {p[0] + U * BYTES, p[1] + U * BYTES, p[2] + U * BYTES,
                                 p[3] + U * BYTES};
    __m512i x[kVectors];
    Interleaved<BYTES>::load(q, x);
    (add_field<M % PLANES>(sums.digit + (U * kSums + M) * kDigits, x[M / PLANES], group), ...);
  }
  template <int... U>
  QLR_ALWAYS_INLINE static void step(Sums& sums, const uint8_t* const* p, const int32_t* group,
                                     std::integer_sequence<int, U...>) {
    (add_piece<U>(sums, p, group, PieceSums()), ...);
  }
  // The digits put together. What is below 2^16 of them fits 31 bits: 128 * 257 * 255 * 256.
  template <int K>
  QLR_ALWAYS_INLINE __m512 join(const __m512i* sum) const {
    const __m512i low = _mm512_add_epi32(_mm512_slli_epi32(sum[1], 8), sum[0]);
    const __m512 whole = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[2]), _mm512_set1_ps(65536.f),
                                         _mm512_cvtepi32_ps(low));
    return _mm512_mul_ps(whole, _mm512_set1_ps(digits.unit[K]));
  }
  // One field of a piece, in whole vectors: the epilogue, which reads them next, would have to wait
  // for parts.
  template <bool FIRST, int U, int K, int... V>
  QLR_ALWAYS_INLINE void store_field(const Sums& sums, float* to,
                                     std::integer_sequence<int, V...>) const {
    __m512 y[kVectors] = {join<K>(sums.digit + (U * kSums + V * PLANES + K) * kDigits)...};
    Interleaved<BYTES>::order(y);
    (add_to<FIRST>(to + ((U * BYTES + 16 * V) / UNIT * (8 / B) + K) * UNIT + 16 * V % UNIT, y[V]),
     ...);
  }
  template <bool FIRST, int U, int... K>
  QLR_ALWAYS_INLINE void store_piece(const Sums& sums, float* to,
                                     std::integer_sequence<int, K...>) const {
    (store_field<FIRST, U, K>(sums, to, std::make_integer_sequence<int, kVectors>()), ...);
  }
  template <bool FIRST, int... U>
  QLR_ALWAYS_INLINE void store(const Sums& sums, std::integer_sequence<int, U...>) const {
    float* const to = out + offset / UNIT * (8 / B) * UNIT + offset % UNIT;
    (store_piece<FIRST, U>(sums, to, std::make_integer_sequence<int, PLANES>()), ...);
  }
  template <bool FIRST>
  QLR_ALWAYS_INLINE static void add_to(float* to, __m512 y) {
    _mm512_storeu_ps(to, FIRST ? y : _mm512_add_ps(_mm512_loadu_ps(to), y));
  }
};

// What all passes over a block share. The first of them asks for the rows ahead.
template <int B>
struct BlockPasses {
  const PackedRows& rows;
  const Digits<B>& digits;
  int64_t e;
  int count;
  float* out;
  bool first;
  int64_t at = 0;  // byte of the rows where the next pass begins

  template <int BYTES, int PIECES>
  void all() {
    constexpr int kBytes = BYTES * PIECES;
    if (at == 0 && rows.layout.stride == kBytes) {
      WeightedPass<B, 32, BYTES, PIECES, kBytes>{rows, digits, 0, out, first, true}.run(e, count);
      at = kBytes;
    }
    for (; rows.layout.stride - at >= kBytes; at += kBytes)
      WeightedPass<B, 32, BYTES, PIECES, 0>{rows, digits, at, out, first, at == 0}.run(e, count);
  }
  // Rows of 16 bytes, of which a good part may be empty.
  template <int PLANES = 8 / B>
  void planes() {
    if constexpr (PLANES > 1)
      if (rows.layout.cols <= 16 * (PLANES - 1)) return planes<PLANES - 1>();
    WeightedPass<B, 16, 16, 1, 16, PLANES>{rows, digits, 0, out, first, true}.run(e, count);
  }
};

// All columns of one block of at most kBlockEdges edges, in passes that fill the registers.
template <int B>
inline void weighted_block(const PackedRows& rows, const WeightBlock&, const Digits<B>& digits,
                           int64_t e, int count, int32_t, float* out, bool first) {
  BlockPasses<B> passes{rows, digits, e, count, out, first};
  if (rows.layout.stride == 16) return passes.planes();
  if constexpr (B == 8) passes.template all<64, 2>();
  if constexpr (B >= 4) passes.template all<64, 1>();
  if constexpr (B >= 2) passes.template all<32, 1>();
  if constexpr (B == 1) passes.template all<16, 1>();
}
