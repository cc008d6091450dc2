// Element-wise maximum or minimum of packed rows, in plain C++.

template <int B, bool MAX>
inline void extremum_row(const PackedRows& rows, int64_t e, int64_t end, int32_t* out) {
  const Layout& layout = rows.layout;
  constexpr int kTop = (1 << B) - 1;
  for (int64_t f = 0; f < layout.padded_cols(); ++f) out[f] = MAX ? 0 : kTop;
  for (; e < end; ++e) {
    const uint8_t* row = rows.row(e);
    rows.prefetch(e, 0, layout.stride);
    for (int64_t u = 0; u < layout.units; ++u)
      for (int k = 0; k < 8 / B; ++k) {
        int32_t* to = out + (u * (8 / B) + k) * layout.unit;
        for (int j = 0; j < layout.unit; ++j) {
          const int32_t code = (row[u * layout.unit + j] >> (B * k)) & kTop;
          to[j] = MAX ? std::max(to[j], code) : std::min(to[j], code);
        }
      }
  }
}
