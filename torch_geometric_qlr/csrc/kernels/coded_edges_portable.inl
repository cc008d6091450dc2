// Sums of packed rows times weights that are integers, in plain C++.

// All columns of one row that has edges. `acc` has room for padded_cols() sums.
template <int B, bool AHEAD>
inline void coded_row(const PackedRows& rows, const int8_t* codes, int64_t e, int64_t end,
                      int32_t* acc) {
  const Layout& layout = rows.layout;
  std::memset(acc, 0, layout.padded_cols() * sizeof(int32_t));
  for (; e < end; ++e) {
    if (AHEAD) rows.prefetch(e, 0, layout.stride);
    const uint8_t* const row = rows.row(e);
    const int32_t n = codes[e];
    for (int64_t u = 0; u < layout.units; ++u)
      for (int k = 0; k < 8 / B; ++k) {
        int32_t* const to = acc + (u * (8 / B) + k) * layout.unit;
        for (int64_t j = 0; j < layout.unit; ++j)
          to[j] += n * ((row[u * layout.unit + j] >> (B * k)) & ((1 << B) - 1));
      }
  }
}
