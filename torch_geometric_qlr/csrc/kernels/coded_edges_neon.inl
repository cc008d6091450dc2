// Exact sums of packed rows with NEON: of their codes, and of codes times weights that are integers.
//
// 16 bytes of the rows at a time, the sums of all their fields in registers. Codes of up to 4 bits are
// multiplied into words, which are added to int32 before they could overflow.

template <int B>
struct CodedBytes {
  static constexpr int kFields = 8 / B;
  static constexpr int kMost = (1 << B) - 1;
  // Edges whose products fit into 16 bits; a weight may be as low as -128.
  static constexpr int64_t kRun = 32767 / (128 * kMost);

  const PackedRows& rows;
  int64_t offset;  // of the bytes in a row
  int32_t* acc;    // of the first field of the first byte
  bool ask;        // for rows ahead

  uint8x16_t bytes(int64_t e) const {
    if (ask) rows.prefetch(e, 0, rows.layout.stride);
    return vld1q_u8(rows.row(e) + offset);
  }
  template <int k>
  static int8x16_t field(uint8x16_t x) {
    if constexpr (k == 0) return vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(kMost)));
    else return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(x, B * k), vdupq_n_u8(kMost)));
  }
  template <int k = 0>
  static QLR_ALWAYS_INLINE void add_fields(int16x8_t (*sum)[2], uint8x16_t x, int8x16_t n) {
    const int8x16_t codes = field<k>(x);
    sum[k][0] = vmlal_s8(sum[k][0], vget_low_s8(codes), vget_low_s8(n));
    sum[k][1] = vmlal_high_s8(sum[k][1], codes, n);
    if constexpr (k + 1 < kFields) add_fields<k + 1>(sum, x, n);
  }
  static void widen(int32_t* to, int16x8_t words, bool first) {
    const int32x4_t low = vmovl_s16(vget_low_s16(words)), high = vmovl_high_s16(words);
    vst1q_s32(to, first ? low : vaddq_s32(vld1q_s32(to), low));
    vst1q_s32(to + 4, first ? high : vaddq_s32(vld1q_s32(to + 4), high));
  }
  // Of codes of up to 4 bits. weight(e) is that of an edge.
  template <typename WeightOf>
  void words(int64_t e, int64_t end, const WeightOf& weight) const {
    bool first = true;
    do {
      int16x8_t sum[kFields][2];
      for (int k = 0; k < kFields; ++k) sum[k][0] = sum[k][1] = vdupq_n_s16(0);
      for (const int64_t stop = std::min(end, e + kRun); e < stop; ++e)
        add_fields(sum, bytes(e), vdupq_n_s8(weight(e)));
      for (int k = 0; k < kFields; ++k)
        for (int half = 0; half < 2; ++half)
          widen(acc + k * rows.layout.unit + 8 * half, sum[k][half], first);
      first = false;
    } while (e < end);
  }
  // Of codes of 8 bits.
  template <typename WeightOf>
  void integers(int64_t e, int64_t end, const WeightOf& weight) const {
    int32x4_t sum[4];
    for (int32x4_t& part : sum) part = vdupq_n_s32(0);
    for (; e < end; ++e) {
      const uint8x16_t x = bytes(e);
      const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x)));
      const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(x));
      const int16_t n = weight(e);
      sum[0] = vmlal_n_s16(sum[0], vget_low_s16(low), n);
      sum[1] = vmlal_high_n_s16(sum[1], low, n);
      sum[2] = vmlal_n_s16(sum[2], vget_low_s16(high), n);
      sum[3] = vmlal_high_n_s16(sum[3], high, n);
    }
    for (int p = 0; p < 4; ++p) vst1q_s32(acc + 4 * p, sum[p]);
  }
};

// All columns of one row that has edges. `acc` has room for padded_cols() sums.
template <int B, bool AHEAD, typename WeightOf>
inline void multiplied_row(const PackedRows& rows, int64_t e, int64_t end, int32_t* acc,
                           const WeightOf& weight) {
  const Layout& layout = rows.layout;
  for (int64_t offset = 0; offset < layout.stride; offset += 16) {
    const int64_t unit = offset / layout.unit;
    int32_t* const to = acc + unit * (8 / B) * layout.unit + offset % layout.unit;
    const CodedBytes<B> part{rows, offset, to, AHEAD && offset == 0};
    if constexpr (B == 8) part.integers(e, end, weight);
    else part.words(e, end, weight);
  }
}

template <int B, bool AHEAD>
inline void coded_row(const PackedRows& rows, const int8_t* codes, int64_t e, int64_t end,
                      int32_t* acc) {
  multiplied_row<B, AHEAD>(rows, e, end, acc, [codes](int64_t at) { return codes[at]; });
}

template <int B>
inline void sum_row(const PackedRows& rows, int64_t e, int64_t end, int32_t* acc) {
  multiplied_row<B, true>(rows, e, end, acc, [](int64_t) { return int8_t{1}; });
}
