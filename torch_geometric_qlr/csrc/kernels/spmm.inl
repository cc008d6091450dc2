// y = A x for packed x: which rows, which sums, and the epilogue.

template <int B>
class PackedSpmm {
 public:
  PackedSpmm(const QlrGraph& graph, const QlrPacked& source, const QlrEpilogue& epilogue)
      : graph_(graph), source_(source),
        rows_{source.data, Layout(source.cols, B), graph.col, graph.edges},
        emitter_(source.cols, graph.rows, &source, epilogue),
        weights_{graph.edge_weight, graph.source_weight,
                 source.axis == QLR_PER_ROW ? source.zero : nullptr,
                 static_cast<float>(emitter_.center())} {}

  int32_t run(int threads) const {
    const int64_t bytes = rows_.layout.stride;
    const bool weighted = weights_.any();
    return parallel_edges(graph_, source_.rows, bytes, threads, [&](int64_t first, int64_t last) {
      if (weighted) weighted_rows(first, last);
      else plain_rows(first, last);
      emitter_.finish();
    });
  }

 private:
  void plain_rows(int64_t first, int64_t last) const {
    Scratch<int32_t> sums(emitter_.padded());
    for (int64_t i = first; i < last; ++i) {
      const int64_t e = graph_.rowptr[i], end = graph_.rowptr[i + 1], degree = end - e;
      if (__builtin_expect(degree > kSafeEdges, 0)) {
        huge_row(i);
        continue;
      }
      sum_row<B>(rows_, e, end, sums.data());
      emitter_.row(i, IntegerSums{sums.data(), int32_t(emitter_.center() * degree),
                                  float(degree), emitter_.row_factor(i, degree)});
    }
  }
  // A row whose sums could leave int32: partial sums, each exact, are joined in float.
  void huge_row(int64_t i) const {
    const int64_t begin = graph_.rowptr[i], end = graph_.rowptr[i + 1];
    Scratch<int32_t> part(emitter_.padded());
    Scratch<double> total(emitter_.padded());
    Scratch<float> sums(emitter_.padded());
    for (int64_t e = begin; e < end; e += kSafeEdges) {
      const int64_t stop = std::min(end, e + kSafeEdges);
      sum_row<B>(rows_, e, stop, part.data());
      for (int64_t f = 0; f < source_.cols; ++f)
        total[f] += double(part[f]) - double(emitter_.center()) * double(stop - e);
    }
    for (int64_t f = 0; f < source_.cols; ++f) sums[f] = static_cast<float>(total[f]);
    emitter_.row(i, FloatSums{sums.data(), float(end - begin), emitter_.row_factor(i, end - begin)});
  }
  void weighted_rows(int64_t first, int64_t last) const {
    const int64_t padded = rows_.layout.padded_cols();
    Scratch<float> sums(emitter_.padded());
    WeightBlock block;
    Digits digits;
    for (int64_t i = first; i < last; ++i) {
      const int64_t end = graph_.rowptr[i + 1], degree = end - graph_.rowptr[i];
      double rest = 0;
      if (degree == 0) std::memset(sums.data(), 0, padded * sizeof(float));
      for (int64_t e = graph_.rowptr[i]; e < end; e += kBlockEdges) {
        const int count = static_cast<int>(std::min<int64_t>(kBlockEdges, end - e));
        block.fill(weights_, graph_.col, e, count, emitter_.has_residual());
        weighted_block<B>(rows_, block, digits, e, count, emitter_.center(), sums.data(),
                          e == graph_.rowptr[i]);
        rest += block.rest;
      }
      emitter_.row(i, FloatSums{sums.data(), float(rest), emitter_.row_factor(i, degree)});
    }
  }

  const QlrGraph& graph_;
  const QlrPacked& source_;
  PackedRows rows_;
  Emitter emitter_;
  WeightSource weights_;
};

inline int32_t packed_spmm(const QlrGraph& graph, const QlrPacked& source,
                           const QlrEpilogue& epilogue, int threads) {
  switch (source.bits) {
    case 1: return PackedSpmm<1>(graph, source, epilogue).run(threads);
    case 2: return PackedSpmm<2>(graph, source, epilogue).run(threads);
    case 4: return PackedSpmm<4>(graph, source, epilogue).run(threads);
    case 8: return PackedSpmm<8>(graph, source, epilogue).run(threads);
    default: return QLR_UNSUPPORTED;
  }
}
