// Weighted sums of packed rows with AVX-512: out[f] (+)= sum of weight times (code - center).
//
// A permutation of 16 floats is a table with an index of four bits, so what a nibble contributes is
// looked up and nothing is unpacked or multiplied: a 4-bit code of one edge, the 2-bit codes of a
// pair of edges, or the bits of four. The table is made anew for every group of edges, from their
// weights. Codes of 8 bits are converted and multiplied.

struct Digits {};  // the form of the weights that the kernels for AVX2 need

// Sums of the nibbles of UNIT bytes. The index vector holds the bytes UNIT times 64 / UNIT, so that
// one shift brings as many different nibbles into its 32-bit lanes.
template <int UNIT>
struct NibbleSums {
  static constexpr int kVectors = UNIT / 8;
  __m512 acc[kVectors];

  NibbleSums() {
    for (__m512& a : acc) a = _mm512_setzero_ps();
  }
  static __m512i load(const uint8_t* p) {
    if constexpr (UNIT == 32)
      return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    else
      return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // HIGH: also the high nibbles.
  template <bool HIGH = true, int k = 0>
  void add(__m512 table, __m512i nibbles) {
    const __m512i first = UNIT == 32
        ? _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16)
        : _mm512_setr_epi32(0, 0, 0, 0, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 24);
    const __m512i shift = _mm512_add_epi32(first, _mm512_set1_epi32(4 * k));
    // The permutation ignores all but the lowest four bits.
    const __m512i index = _mm512_srlv_epi32(nibbles, shift);
    acc[k] = _mm512_add_ps(acc[k], _mm512_permutexvar_ps(index, table));
    constexpr int next = k + (HIGH ? 1 : 2);  // vectors of low and of high nibbles take turns
    if constexpr (next < kVectors) add<HIGH, next>(table, nibbles);
  }
  static void put(float* to, __m512 a, bool first) {
    _mm512_store_ps(to, first ? a : _mm512_add_ps(_mm512_load_ps(to), a));
  }
  // The sums of the low (HIGH: high) nibbles in the order of the bytes.
  template <bool HIGH>
  void store(float* to, bool first) const {
    if constexpr (UNIT == 32) {
      // Lanes hold every fourth byte: of acc[0] bytes 0 and 2 of each 32 bits, of acc[2] 1 and 3.
      const __m512 low = _mm512_unpacklo_ps(acc[HIGH], acc[2 + HIGH]);
      const __m512 high = _mm512_unpackhi_ps(acc[HIGH], acc[2 + HIGH]);
      put(to, join(low, _mm512_setr_epi64(0, 4, 1, 5, 8, 12, 9, 13), high), first);
      put(to + 16, join(low, _mm512_setr_epi64(2, 6, 3, 7, 10, 14, 11, 15), high), first);
    } else {
      const __m512i order =
          _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      put(to, _mm512_permutexvar_ps(order, acc[HIGH]), first);
    }
  }

 private:
  static __m512 join(__m512 a, __m512i pairs, __m512 b) {
    return _mm512_castpd_ps(
        _mm512_permutex2var_pd(_mm512_castps_pd(a), pairs, _mm512_castps_pd(b)));
  }
};

// Codes of B < 8 bits: 4 / B edges share a table, and the nibbles made of their bits come in 4 / B
// vectors. Vector s holds field s in its low nibbles and field s + 4 / B in the high ones.
// Only the first PLANES fields are summed.
template <int B, int UNIT, int U, int PLANES = 8 / B>
struct LookupPass {
  static constexpr int kEdges = 4 / B;
  static constexpr int kFields = 8 / B;

  const PackedRows& rows;
  int64_t offset;  // byte of the row where the pass begins
  float* out;      // of the unit at `offset`
  bool first;

  // What one edge adds for every value of a nibble; it owns the bits from B * `place` on.
  template <int place>
  static __m512 values(float center) {
    const __m512i nibble =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i code = _mm512_and_si512(_mm512_srli_epi32(nibble, B * place),
                                          _mm512_set1_epi32((1 << B) - 1));
    return _mm512_sub_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(center));
  }
  static __m512 table(const float* weight, float center) {
    __m512 t = _mm512_mul_ps(_mm512_set1_ps(weight[0]), values<0>(center));
    if constexpr (kEdges > 1)
      t = _mm512_fmadd_ps(_mm512_set1_ps(weight[1]), values<1>(center), t);
    if constexpr (kEdges > 2) {
      t = _mm512_fmadd_ps(_mm512_set1_ps(weight[2]), values<2>(center), t);
      t = _mm512_fmadd_ps(_mm512_set1_ps(weight[3]), values<3>(center), t);
    }
    return t;
  }
  template <int K>
  static __m512i shifted(__m512i a) {  // to the right by K, which may be negative
    if constexpr (K > 0) return _mm512_srli_epi16(a, K);
    else if constexpr (K < 0) return _mm512_slli_epi16(a, -K);
    else return a;
  }
  // Field s (and s + kEdges) of every edge, brought to its place in the nibble.
  template <int s, int edge>
  static __m512i field(const __m512i* x) {
    return shifted<B * (s - edge)>(x[edge]);
  }
  // Bits of a under the mask, of b elsewhere.
  static __m512i select(int mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(mask)), a, b, 0xca);
  }
  template <int s>
  static __m512i nibbles(const __m512i* x) {
    if constexpr (B == 4) return x[0];
    else if constexpr (B == 2) return select(0x33, field<s, 0>(x), field<s, 1>(x));
    else
      return select(0x33, select(0x11, field<s, 0>(x), field<s, 1>(x)),
                    select(0x44, field<s, 2>(x), field<s, 3>(x)));
  }
  typedef NibbleSums<UNIT> Sums[U][kEdges];

  template <int s = 0>
  static void add(NibbleSums<UNIT>* sums, __m512 t, const __m512i* x) {
    sums[s].template add<(s + kEdges < PLANES)>(t, nibbles<s>(x));
    if constexpr (s + 1 < kEdges) add<s + 1>(sums, t, x);
  }
  static void add_rows(Sums& sums, const uint8_t* const* p, __m512 t) {
    for (int u = 0; u < U; ++u) {
      __m512i x[kEdges];
      for (int r = 0; r < kEdges; ++r) x[r] = NibbleSums<UNIT>::load(p[r] + u * UNIT);
      add(sums[u], t, x);
    }
  }
  template <int s = 0>
  void store(const NibbleSums<UNIT>* sums, float* to) const {
    sums[s].template store<false>(to + s * UNIT, first);
    if constexpr (s + kEdges < PLANES)
      sums[s].template store<true>(to + (s + kEdges) * UNIT, first);
    if constexpr (s + 1 < kEdges) store<s + 1>(sums, to);
  }

  void run(int64_t e, int count, const float* weight, float center, int64_t ahead) const {
    Sums sums;
    int i = 0;
    for (; i + kEdges <= count; i += kEdges) {
      const uint8_t* p[kEdges];
      for (int r = 0; r < kEdges; ++r) p[r] = rows.row(e + i + r) + offset;
      if (ahead)
        for (int r = 0; r < kEdges; ++r) rows.prefetch(e + i + r, 0, ahead);
      add_rows(sums, p, table(weight + i, center));
    }
    if (kEdges > 1 && i < count) {
      // Rows that are missing have weight zero, so any will do.
      const uint8_t* p[kEdges];
      float padded[kEdges] = {0.f};
      for (int r = 0; r < kEdges; ++r) p[r] = rows.row(e + std::min(i + r, count - 1)) + offset;
      for (int r = 0; i + r < count; ++r) padded[r] = weight[i + r];
      if (ahead)
        for (int r = 0; i + r < count; ++r) rows.prefetch(e + i + r, 0, ahead);
      add_rows(sums, p, table(padded, center));
    }
    for (int u = 0; u < U; ++u) store(sums[u], out + u * kFields * UNIT);
  }
};

// Codes of 8 bits, 16 * V of them.
template <int V>
inline void convert_pass(const PackedRows& rows, int64_t e, int count, const float* weight,
                         int32_t center, int64_t offset, int64_t ahead, float* out, bool first) {
  __m512 acc[V];  // of this block alone: the rounding of a long sum must not go on growing
  for (int v = 0; v < V; ++v) acc[v] = _mm512_setzero_ps();
  const __m512i center_ = _mm512_set1_epi32(center);
  for (int i = 0; i < count; ++i) {
    const uint8_t* p = rows.row(e + i) + offset;
    if (ahead) rows.prefetch(e + i, 0, ahead);
    const __m512 w = _mm512_set1_ps(weight[i]);
    for (int v = 0; v < V; ++v) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + v * 16));
      const __m512i code = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), center_);
      acc[v] = _mm512_fmadd_ps(w, _mm512_cvtepi32_ps(code), acc[v]);
    }
  }
  for (int v = 0; v < V; ++v) NibbleSums<32>::put(out + v * 16, acc[v], first);
}

// What all passes over a block share. The first of them asks for the rows ahead.
struct BlockPasses {
  const PackedRows& rows;
  int64_t e;
  int count;
  const float* weight;
  int32_t center;
  float* out;
  bool first;
  int64_t at = 0;  // byte of the rows where the next pass begins

  int64_t left() const { return rows.layout.stride - at; }
  int64_t ahead() const { return at == 0 ? rows.layout.stride : 0; }

  // U units of 32 bytes at a time, then half as many.
  template <int B, int U>
  void look_up() {
    for (; left() >= 32 * U; at += 32 * U)
      LookupPass<B, 32, U>{rows, at, out + at * (8 / B), first}.run(
          e, count, weight, static_cast<float>(center), ahead());
    if constexpr (U > 1) look_up<B, U / 2>();
  }
  // Rows of 16 bytes, of which a good part may be empty.
  template <int B>
  void look_up_short() {
    constexpr int all = 8 / B;
    if (rows.layout.cols <= 16 * (all / 2)) planes<B, all / 2>();
    else if (rows.layout.cols <= 16 * (all - all / 4)) planes<B, all - all / 4>();
    else planes<B, all>();
  }
  template <int B, int PLANES>
  void planes() {
    LookupPass<B, 16, 1, PLANES>{rows, 0, out, first}.run(e, count, weight,
                                                          static_cast<float>(center), 16);
  }
  // Whole vectors of the columns that are there: the rest of a row is padding.
  template <int V>
  void convert() {
    const int64_t end = (rows.layout.cols + 15) / 16 * 16;
    for (; end - at >= 16 * V; at += 16 * V)
      convert_pass<V>(rows, e, count, weight, center, at, ahead(), out + at, first);
    if constexpr (V > 1) convert<(V > 4 ? V / 2 : V - 1)>();
  }
};

// All columns of one block of at most kBlockEdges edges.
template <int B>
inline void weighted_block(const PackedRows& rows, const WeightBlock& block, Digits&, int64_t e,
                           int count, int32_t center, float* out, bool first) {
  BlockPasses passes{rows, e, count, block.value, center, out, first};
  if constexpr (B == 8) {
    passes.convert<16>();
  } else if (rows.layout.stride == 16) {
    passes.look_up_short<B>();
  } else {
    passes.look_up<B, B>();  // as many units as there are registers for their sums
  }
}
