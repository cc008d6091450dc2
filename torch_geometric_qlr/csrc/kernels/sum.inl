// Exact sums of packed rows without weights: acc[f] = sum of the codes of column f.
//
// Codes are added where they lie. Two bits become nibble fields (5 codes fit), nibbles become
// bytes (85 codes), bytes become int32; four bits start at bytes (17 codes), go through words when
// there are more; eight bits are added as words twice, whole and shifted, which separates even and
// odd bytes for three instructions.
//
// A vector holds R rows of N / R bytes side by side; W vectors of the same rows are summed in one
// pass over the edges.

alignas(64) static const uint8_t kZeroRow[64] = {0};

template <int B, int R, int W>
struct SumPass {
  typedef Bytes::v v;
  static constexpr int kPiece = Bytes::N / R;  // bytes of a row in a vector
  static constexpr int kUnit = kPiece == 16 ? 16 : 32;
  static constexpr int kFields = 8 / B;

  const PackedRows& rows;
  int64_t offset;  // byte of the row where the pass begins
  int32_t* acc;    // sums of the unit at `offset`

  // The first flush of a row sets its sums, the others add to them. `parts` are the bytes of vector
  // w in order; where several rows share it, they meet here.
  void flush(F::vi* parts, int w, int k, bool first) const {
    constexpr int kParts = kPiece / F::W;
    for (int j = 0; j < kParts; ++j) {
      for (int r = 1; r < R; ++r) parts[j] = F::add_int(parts[j], parts[j + r * kParts]);
      const int byte = w * kPiece + j * F::W;
      int32_t* to = acc + (byte / kUnit * kFields + k) * kUnit + byte % kUnit;
      F::store_int(to, first ? parts[j] : F::add_int(F::load_int(to), parts[j]));
    }
  }
  void flush_bytes(v sum, int w, int k, bool first) const {
    F::vi parts[4];
    Bytes::widen8(sum, parts);
    flush(parts, w, k, first);
  }
  // Sums of even and of odd bytes, as words.
  void flush_even_odd(v even, v odd, int w, int k, bool first) const {
    F::vi parts[4];
    Bytes::widen16(even, odd, parts);
    flush(parts, w, k, first);
  }

  // The next R rows; absent ones are zero.
  void point(int64_t e, int64_t end, const uint8_t** p) const {
    for (int r = 0; r < R; ++r) p[r] = e + r < end ? rows.row(e + r) + offset : kZeroRow;
  }
  void ask(int64_t e) const {
    for (int r = 0; r < R; ++r) rows.prefetch(e + r, offset, W * kPiece);
  }
  static v load(const uint8_t* const* p, int w) {
    const uint8_t* q[R];
    for (int r = 0; r < R; ++r) q[r] = p[r] + w * kPiece;  // rows share a vector only if W is 1
    return Bytes::load_rows<R>(q);
  }
  // For whole groups, where no row is absent.
  v load_at(int64_t e, int w) const {
    const uint8_t* q[R];
    for (int r = 0; r < R; ++r) q[r] = rows.row(e + r) + offset + w * kPiece;
    return Bytes::load_rows<R>(q);
  }

  void run(int64_t e, int64_t end) const {
    if constexpr (B <= 2) narrow(e, end);
    else if constexpr (B == 4) nibbles(e, end);
    else bytes(e, end);
  }

  // 1 and 2 bits.
  void narrow(int64_t e, int64_t end) const {
    constexpr int kShifts = 4 / B;           // fields that share a nibble mask
    constexpr int kGroup = B == 1 ? 15 : 5;  // codes that fit a nibble
    constexpr int kGroups = 17;              // nibbles that fit a byte
    const v mask = Bytes::set1(B == 1 ? 0x11 : 0x33), nibble = Bytes::set1(0x0f);
    bool first = true;
    do {
      v b[W][kFields];
      for (int w = 0; w < W; ++w)
        for (int k = 0; k < kFields; ++k) b[w][k] = Bytes::zero();
      for (int g = 0; g < kGroups && e < end; ++g) {
        v n[W][kShifts];
        for (int w = 0; w < W; ++w)
          for (int s = 0; s < kShifts; ++s) n[w][s] = Bytes::zero();
        if (e + kGroup * R <= end) {
          for (int u = 0; u < kGroup; ++u, e += R) {
            ask(e);
            for (int w = 0; w < W; ++w) add_shifted(n[w], load_at(e, w), mask);
          }
        } else {
          for (; e < end; e += R) {
            const uint8_t* p[R];
            ask(e);
            point(e, end, p);
            for (int w = 0; w < W; ++w) add_shifted(n[w], load(p, w), mask);
          }
        }
        for (int w = 0; w < W; ++w)
          for (int s = 0; s < kShifts; ++s) {
            b[w][s] = Bytes::add8(b[w][s], Bytes::both(n[w][s], nibble));
            b[w][s + kShifts] = Bytes::add8(
                b[w][s + kShifts], Bytes::both(Bytes::template right16<4>(n[w][s]), nibble));
          }
      }
      for (int w = 0; w < W; ++w)
        for (int k = 0; k < kFields; ++k) flush_bytes(b[w][k], w, k, first);
      first = false;
    } while (e < end);
  }
  static void add_shifted(v* n, v x, v mask) {
    n[0] = Bytes::add8(n[0], Bytes::both(x, mask));
    n[1] = Bytes::add8(n[1], Bytes::both(Bytes::right16<B>(x), mask));
    if constexpr (B == 1) {
      n[2] = Bytes::add8(n[2], Bytes::both(Bytes::right16<2>(x), mask));
      n[3] = Bytes::add8(n[3], Bytes::both(Bytes::right16<3>(x), mask));
    }
  }

  // At most 17 vectors of 4-bit codes into bytes.
  void nibble_bytes(int64_t& e, int64_t end, v (*b)[2]) const {
    const v mask = Bytes::set1(0x0f);
    const int64_t stop = std::min(end, e + 17 * R);
    for (int w = 0; w < W; ++w) b[w][0] = b[w][1] = Bytes::zero();
    for (; e < stop; e += R) {
      const uint8_t* p[R];
      ask(e);
      point(e, stop, p);
      for (int w = 0; w < W; ++w) {
        const v x = load(p, w);
        b[w][0] = Bytes::add8(b[w][0], Bytes::both(x, mask));
        b[w][1] = Bytes::add8(b[w][1], Bytes::both(Bytes::right16<4>(x), mask));
      }
    }
  }
  void nibbles(int64_t e, int64_t end) const {
    v b[W][2];
    if (end - e <= 17 * R) {
      nibble_bytes(e, end, b);
      for (int w = 0; w < W; ++w)
        for (int k = 0; k < 2; ++k) flush_bytes(b[w][k], w, k, true);
      return;
    }
    constexpr int kGroups = 65535 / 255;  // full bytes that fit a word
    const v low = Bytes::low_bytes();
    bool first = true;
    do {
      v even[W][2], odd[W][2];
      for (int w = 0; w < W; ++w)
        for (int k = 0; k < 2; ++k) even[w][k] = odd[w][k] = Bytes::zero();
      for (int g = 0; g < kGroups && e < end; ++g) {
        nibble_bytes(e, end, b);
        for (int w = 0; w < W; ++w)
          for (int k = 0; k < 2; ++k) {
            even[w][k] = Bytes::add16(even[w][k], Bytes::both(b[w][k], low));
            odd[w][k] = Bytes::add16(odd[w][k], Bytes::right16<8>(b[w][k]));
          }
      }
      for (int w = 0; w < W; ++w)
        for (int k = 0; k < 2; ++k) flush_even_odd(even[w][k], odd[w][k], w, k, first);
      first = false;
    } while (e < end);
  }

  // 8 bits.
  void bytes(int64_t e, int64_t end) const {
    constexpr int kCodes = 257;  // codes that fit a word
    bool first = true;
    do {
      const int64_t stop = std::min(end, e + kCodes * R);
      v whole[W], odd[W];
      for (int w = 0; w < W; ++w) whole[w] = odd[w] = Bytes::zero();
      for (; e < stop; e += R) {
        const uint8_t* p[R];
        ask(e);
        point(e, stop, p);
        for (int w = 0; w < W; ++w) {
          const v x = load(p, w);
          whole[w] = Bytes::add16(whole[w], x);
          odd[w] = Bytes::add16(odd[w], Bytes::right16<8>(x));
        }
      }
      for (int w = 0; w < W; ++w)
        flush_even_odd(Bytes::sub16(whole[w], Bytes::left16<8>(odd[w])), odd[w], w, 0, first);
      first = false;
    } while (e < end);
  }
};

template <int B, int R, int W>
inline void sum_pass(const PackedRows& rows, int64_t e, int64_t end, int64_t offset, int32_t* acc) {
  const int64_t unit = rows.layout.unit;
  SumPass<B, R, W>{rows, offset, acc + offset / unit * rows.layout.fields * unit}.run(e, end);
}

// All columns of one row. `acc` has room for padded_cols() sums.
template <int B>
inline void sum_row(const PackedRows& rows, int64_t e, int64_t end, int32_t* acc) {
  constexpr int N = Bytes::N;
  const int64_t stride = rows.layout.stride;
  if (stride == 16) return sum_pass<B, N / 16, 1>(rows, e, end, 0, acc);
  // The vectors a pass may hold in registers.
  constexpr int kWide = B == 8 ? 4 : B == 4 || N == 64 ? 2 : 1;
  int64_t offset = 0;
  for (; offset + kWide * N <= stride; offset += kWide * N)
    sum_pass<B, 1, kWide>(rows, e, end, offset, acc);
  if constexpr (kWide > 2)
    for (; offset + 2 * N <= stride; offset += 2 * N) sum_pass<B, 1, 2>(rows, e, end, offset, acc);
  if constexpr (kWide > 1)
    for (; offset + N <= stride; offset += N) sum_pass<B, 1, 1>(rows, e, end, offset, acc);
  if constexpr (N == 64)
    if (offset < stride) sum_pass<B, 2, 1>(rows, e, end, offset, acc);
}
