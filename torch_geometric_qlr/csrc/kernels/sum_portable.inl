// Exact sums of packed rows without weights, in plain C++.

template <int B>
inline void sum_row(const PackedRows& rows, int64_t e, int64_t end, int32_t* acc) {
  const Layout& layout = rows.layout;
  std::fill_n(acc, layout.padded_cols(), 0);
  for (; e < end; ++e) {
    const uint8_t* row = rows.row(e);
    rows.prefetch(e, 0, layout.stride);
    for (int64_t u = 0; u < layout.units; ++u)
      for (int k = 0; k < 8 / B; ++k) {
        int32_t* out = acc + (u * (8 / B) + k) * layout.unit;
        for (int j = 0; j < layout.unit; ++j)
          out[j] += (row[u * layout.unit + j] >> (B * k)) & ((1 << B) - 1);
      }
  }
}
