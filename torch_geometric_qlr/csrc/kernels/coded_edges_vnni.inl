// Sums of packed rows times weights that are integers, exact, with AVX-512 and VNNI: acc[f] = sum of n
// times the code of f.
//
// As weighted_vnni.inl has it, with one digit: four rows are interleaved, so that one dot product adds
// four edges in 32 bits. A field of a byte is masked and not shifted, so that its sums are too large by
// a power of two, which is taken back at the end of the row.

// A pass over the edges of a row for PIECES of BYTES bytes in units of UNIT, of which only the first
// PLANES fields are summed. STRIDE is that of the rows, or 0 if it is not known yet.
template <int B, int UNIT, int BYTES, int PIECES, int STRIDE, bool AHEAD, int PLANES = 8 / B>
struct CodedPass {
  static constexpr int kVectors = BYTES / 16;
  static constexpr int kSums = kVectors * PLANES;  // of a piece: vectors times fields
  struct Sums {
    __m512i of[PIECES * kSums];
  };
  typedef std::make_integer_sequence<int, PIECES> Pieces;
  typedef std::make_integer_sequence<int, kSums> PieceSums;

  const PackedRows& rows;
  const int8_t* codes;  // of edge 0
  int64_t offset;       // byte of the row where the pass begins
  int32_t* acc;         // of the row

  // Inlined, it would share the registers.
  QLR_NEVER_INLINE void run(int64_t e, int64_t end) const {
    Sums sums = zeros(std::make_integer_sequence<int, PIECES * kSums>());
    const uint8_t* const data = rows.data + offset;
    const int32_t* col = rows.col + e;
    const int8_t* n = codes + e;
    const bool asks = AHEAD && offset == 0;
    const bool inside = asks && end + 3 + kPrefetch <= rows.edges;  // whole groups of four
    if (asks && !inside) ask_in_bounds(e, end);
    int64_t count = end - e;
    for (; count >= 4; count -= 4, col += 4, n += 4) {
      const uint8_t* p[4];
      for (int r = 0; r < 4; ++r) p[r] = data + col[r] * stride();
      if (inside)
        for (int r = 0; r < 4; ++r) ask(data + col[r + kPrefetch] * stride());
      step(sums, p, n, Pieces());
    }
    if (count > 0) {  // weights of zero, so any row will do
      const uint8_t* p[4];
      for (int r = 0; r < 4; ++r) p[r] = data + col[std::min<int64_t>(r, count - 1)] * stride();
      alignas(4) int8_t last[4] = {0, 0, 0, 0};
      std::memcpy(last, n, count & 3);
      step(sums, p, last, Pieces());
    }
    store(sums, Pieces());
  }

 private:
  int64_t stride() const { return STRIDE ? STRIDE : rows.layout.stride; }

  void ask(const uint8_t* row) const {
    for (int64_t b = 0; b < stride(); b += 64) prefetch_line(row + b);
  }
  QLR_NEVER_INLINE void ask_in_bounds(int64_t e, int64_t end) const {
    for (; e < end; ++e)
      ask(rows.data + rows.col[std::min(e + kPrefetch, rows.edges - 1)] * stride());
  }
  template <int... N>
  QLR_ALWAYS_INLINE static Sums zeros(std::integer_sequence<int, N...>) {
    return {{(static_cast<void>(N), _mm512_setzero_si512())...}};
  }
  template <int K>
  QLR_ALWAYS_INLINE static void add_field(__m512i& sum, __m512i x, const int8_t* n) {
    if constexpr (B < 8)
      x = _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(((1 << B) - 1) << (B * K))));
    typedef int32_t __attribute__((may_alias, aligned(1))) Four;
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(x), "m"(*reinterpret_cast<const Four*>(n)));
  }
  template <int U, int... M>
  QLR_ALWAYS_INLINE static void add_piece(Sums& sums, const uint8_t* const* p, const int8_t* n,
                                          std::integer_sequence<int, M...>) {
    const uint8_t* const q[4] = {p[0] + U * BYTES, p[1] + U * BYTES, p[2] + U * BYTES,
                                 p[3] + U * BYTES};
    __m512i x[kVectors];
    Interleaved<BYTES>::load(q, x);
    (add_field<M % PLANES>(sums.of[U * kSums + M], x[M / PLANES], n), ...);
  }
  template <int... U>
  QLR_ALWAYS_INLINE static void step(Sums& sums, const uint8_t* const* p, const int8_t* n,
                                     std::integer_sequence<int, U...>) {
    (add_piece<U>(sums, p, n, PieceSums()), ...);
  }
  // One field of a piece, in whole vectors.
  template <int U, int K, int... V>
  QLR_ALWAYS_INLINE static void store_field(const Sums& sums, int32_t* to,
                                            std::integer_sequence<int, V...>) {
    __m512 y[kVectors] = {
        _mm512_castsi512_ps(_mm512_srai_epi32(sums.of[U * kSums + V * PLANES + K], B * K))...};
    Interleaved<BYTES>::order(y);
    (_mm512_storeu_ps(to + ((U * BYTES + 16 * V) / UNIT * (8 / B) + K) * UNIT + 16 * V % UNIT,
                      y[V]),
     ...);
  }
  template <int U, int... K>
  QLR_ALWAYS_INLINE static void store_piece(const Sums& sums, int32_t* to,
                                            std::integer_sequence<int, K...>) {
    (store_field<U, K>(sums, to, std::make_integer_sequence<int, kVectors>()), ...);
  }
  template <int... U>
  QLR_ALWAYS_INLINE void store(const Sums& sums, std::integer_sequence<int, U...>) const {
    int32_t* const to = acc + offset / UNIT * (8 / B) * UNIT + offset % UNIT;
    (store_piece<U>(sums, to, std::make_integer_sequence<int, PLANES>()), ...);
  }
};

// What all passes over a row share. The first of them asks for the rows ahead.
template <int B, bool AHEAD>
struct CodedPasses {
  const PackedRows& rows;
  const int8_t* codes;
  int64_t e, end;
  int32_t* acc;
  int64_t at = 0;  // byte of the rows where the next pass begins

  template <int BYTES, int PIECES>
  void all() {
    constexpr int kBytes = BYTES * PIECES;
    if (at == 0 && rows.layout.stride == kBytes) {
      CodedPass<B, 32, BYTES, PIECES, kBytes, AHEAD>{rows, codes, 0, acc}.run(e, end);
      at = kBytes;
    }
    for (; rows.layout.stride - at >= kBytes; at += kBytes)
      CodedPass<B, 32, BYTES, PIECES, 0, AHEAD>{rows, codes, at, acc}.run(e, end);
  }
  // Rows of 16 bytes, of which a good part may be empty.
  template <int PLANES = 8 / B>
  void planes() {
    if constexpr (PLANES > 1)
      if (rows.layout.cols <= 16 * (PLANES - 1)) return planes<PLANES - 1>();
    CodedPass<B, 16, 16, 1, 16, AHEAD, PLANES>{rows, codes, 0, acc}.run(e, end);
  }
};

// All columns of one row that has edges, in passes that fill the registers. `acc` has room for
// padded_cols() sums.
template <int B, bool AHEAD>
inline void coded_row(const PackedRows& rows, const int8_t* codes, int64_t e, int64_t end,
                      int32_t* acc) {
  CodedPasses<B, AHEAD> passes{rows, codes, e, end, acc};
  if (rows.layout.stride == 16) return passes.planes();
  if constexpr (B == 8) passes.template all<64, 4>();
  if constexpr (B >= 4) passes.template all<64, 2>();
  if constexpr (B >= 2) passes.template all<64, 1>();
  passes.template all<32, 1>();
}
