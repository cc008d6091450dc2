// Gathers that are not sums of codes: extrema, attention with several heads, and float rows.

template <int B, bool MAX>
inline int32_t extremum_rows(const QlrGraph& graph, const QlrPacked& source,
                             const QlrEpilogue& epilogue, int threads) {
  const PackedRows rows{source.data, Layout(source.cols, B), graph.col, graph.edges};
  const Emitter emitter(source.cols, graph.rows, &source, epilogue);
  return parallel_edges(graph, source.rows, rows.layout.stride, threads,
                        [&](int64_t first, int64_t last) {
    Scratch<int32_t> best(emitter.padded());
    for (int64_t i = first; i < last; ++i) {
      const int64_t e = graph.rowptr[i], end = graph.rowptr[i + 1];
      if (e == end) std::memset(best.data(), 0, emitter.padded() * sizeof(int32_t));
      else extremum_row<B, MAX>(rows, e, end, best.data());
      // A row without neighbours is 0, not the value of code 0.
      emitter.row(i, IntegerSums{best.data(), e < end ? emitter.center() : 0, e < end ? 1.f : 0.f});
    }
    emitter.finish();
  });
}

template <int B>
inline int32_t extremum_bits(const QlrGraph& graph, const QlrPacked& source, bool largest,
                             const QlrEpilogue& epilogue, int threads) {
  return largest ? extremum_rows<B, true>(graph, source, epilogue, threads)
                 : extremum_rows<B, false>(graph, source, epilogue, threads);
}

// Codes compare like values only where all rows share scale and zero point, and the scale is one.
inline bool compare_like_values(const QlrPacked& source) {
  if (source.axis == QLR_PER_ROW) return false;
  bool ordered = true;
  for (int64_t k = 0; k < (source.axis == QLR_PER_COLUMN ? source.cols : 1); ++k)
    ordered &= source.scale[k] > 0.f && std::isfinite(source.scale[k]);
  return ordered;
}

inline int32_t packed_extremum(const QlrGraph& graph, const QlrPacked& source, bool largest,
                               const QlrEpilogue& epilogue, int threads) {
  if (!compare_like_values(source)) return QLR_UNSUPPORTED;
  switch (source.bits) {
    case 1: return extremum_bits<1>(graph, source, largest, epilogue, threads);
    case 2: return extremum_bits<2>(graph, source, largest, epilogue, threads);
    case 4: return extremum_bits<4>(graph, source, largest, epilogue, threads);
    case 8: return extremum_bits<8>(graph, source, largest, epilogue, threads);
    default: return QLR_UNSUPPORTED;
  }
}

// Where the codes of F::W neighbouring columns lie, and whose head they are.
struct AttentionColumns {
  Scratch<int32_t> head, byte, shift;
  Scratch<float> zero;

  AttentionColumns(const QlrPacked& source, const Layout& layout, int64_t heads, int64_t padded)
      : head(padded), byte(padded), shift(padded), zero(padded) {
    for (int64_t f = 0; f < source.cols; ++f) {
      const int64_t plane = f / layout.unit;
      head[f] = static_cast<int32_t>(f / (source.cols / heads));
      byte[f] = static_cast<int32_t>(plane / layout.fields * layout.unit + f % layout.unit);
      shift[f] = static_cast<int32_t>(plane % layout.fields * layout.bits);
      if (source.axis != QLR_PER_ROW) zero[f] = source.zero[source.axis == QLR_PER_COLUMN ? f : 0];
    }
  }
};

// K vectors of columns from `f` on, over all edges of a row.
template <int K>
inline void attention_pass(const PackedRows& rows, const QlrPacked& source, const float* alpha,
                           int64_t heads, AttentionColumns& at, int64_t f, int64_t e, int64_t end,
                           float* out) {
  const int mask = (1 << source.bits) - 1;
  const bool per_row = source.axis == QLR_PER_ROW, table = heads <= F::kTable;
  F::vf acc[K];
  for (int k = 0; k < K; ++k) acc[k] = F::zero();
  for (; e < end; ++e) {
    const uint8_t* row = rows.row(e);
    rows.prefetch(e, at.byte[f], 64);
    const float* a = alpha + e * heads;
    const F::vf shared = table ? F::load_partial(a, heads) : F::zero();
    const F::vf row_scale = F::set1(per_row ? source.scale[rows.col[e]] : 1.f);
    const F::vf row_zero = F::set1(per_row ? source.zero[rows.col[e]] : 0.f);
    for (int k = 0; k < K; ++k) {
      const int64_t g = f + k * F::W;
      const F::vf code = F::load_field(row + at.byte[g], at.shift[g], mask);
      const F::vf centered = F::sub(code, per_row ? row_zero : F::load(&at.zero[g]));
      const F::vf w =
          table ? F::lookup(shared, &at.head[g]) : F::gather(a, F::load_int(&at.head[g]));
      acc[k] = F::fma(F::mul(w, row_scale), centered, acc[k]);
    }
  }
  for (int k = 0; k < K; ++k) F::store(out + f + k * F::W, acc[k]);
}

inline int32_t packed_attention(const QlrGraph& graph, const QlrPacked& source, const float* alpha,
                                int64_t heads, const QlrEpilogue& epilogue, int threads) {
  const PackedRows rows{source.data, Layout(source.cols, source.bits), graph.col, graph.edges};
  // The zero point is subtracted per edge, so the epilogue only scales.
  QlrPacked scaled = source;
  Scratch<float> zeros(source.axis == QLR_PER_COLUMN ? source.cols : 1);
  scaled.zero = zeros.data();
  const Emitter emitter(source.cols, graph.rows, &scaled, epilogue);
  AttentionColumns at(source, rows.layout, heads, emitter.padded());
  return emitter.status(
      parallel_edges(graph, source.rows, source.cols, threads, [&](int64_t first, int64_t last) {
    Scratch<float> sums(emitter.padded());
    for (int64_t i = first; i < last; ++i) {
      const int64_t e = graph.rowptr[i], end = graph.rowptr[i + 1];
      int64_t f = 0;
      for (; f + 4 * F::W <= source.cols; f += 4 * F::W)
        attention_pass<4>(rows, source, alpha, heads, at, f, e, end, sums.data());
      for (; f < source.cols; f += F::W)
        attention_pass<1>(rows, source, alpha, heads, at, f, e, end, sums.data());
      emitter.row(i, FloatSums{sums.data(), 0.f});
    }
    emitter.finish();
  }));
}

// K vectors of float columns over the edges of a block.
template <int K>
inline void float_pass(const float* x, int64_t cols, const QlrGraph& graph, const float* weight,
                       int64_t f, int64_t e, int count, float* out) {
  F::vf acc[K];
  for (int k = 0; k < K; ++k) acc[k] = F::load(out + f + k * F::W);
  for (int j = 0; j < count; ++j) {
    const float* row = x + int64_t{graph.col[e + j]} * cols + f;
    const int64_t ahead = std::min(e + j + kPrefetch, graph.edges - 1);
    const float* next = x + int64_t{graph.col[ahead]} * cols + f;
    for (int b = 0; b < K * F::W; b += 16) prefetch_line(next + b);
    const F::vf w = F::set1(weight != nullptr ? weight[j] : 1.f);
    for (int k = 0; k < K; ++k) {
      const F::vf v = K > 1 ? F::load(row + k * F::W) : F::load_partial(row, cols - f);
      acc[k] = weight != nullptr ? F::fma(w, v, acc[k]) : F::add(acc[k], v);
    }
  }
  for (int k = 0; k < K; ++k) F::store(out + f + k * F::W, acc[k]);
}

inline int32_t float_spmm(const QlrGraph& graph, const float* x, int64_t source_rows, int64_t cols,
                          const QlrEpilogue& epilogue, int threads) {
  const Emitter emitter(cols, graph.rows, nullptr, epilogue);
  const WeightSource weights{graph.edge_weight, graph.source_weight, nullptr, 0.f};
  return parallel_edges(graph, source_rows, cols * 4, threads, [&](int64_t first, int64_t last) {
    Scratch<float> sums(emitter.padded());
    WeightBlock block;
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = graph.rowptr[i], end = graph.rowptr[i + 1];
      const int64_t step = weights.any() ? kBlockEdges : kSafeEdges;
      std::memset(sums.data(), 0, (cols + F::W) * sizeof(float));
      for (int64_t e = begin; e < end; e += step) {
        const int count = static_cast<int>(std::min(step, end - e));
        if (weights.any()) block.fill(weights, graph.col, e, count, false);
        const float* w = weights.any() ? block.value : nullptr;
        int64_t f = 0;
        for (; f + 8 * F::W <= cols; f += 8 * F::W)
          float_pass<8>(x, cols, graph, w, f, e, count, sums.data());
        for (; f + 2 * F::W <= cols; f += 2 * F::W)
          float_pass<2>(x, cols, graph, w, f, e, count, sums.data());
        for (; f < cols; f += F::W) float_pass<1>(x, cols, graph, w, f, e, count, sums.data());
      }
      emitter.row(i, FloatSums{sums.data(), 0.f}, end - begin);
    }
    emitter.finish();
  });
}
