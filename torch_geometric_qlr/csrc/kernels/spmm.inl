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
                 static_cast<float>(emitter_.center())},
        has_digits_(graph.digits != nullptr && weights_.source == nullptr &&
                    weights_.zero == nullptr) {}

  int32_t run(int threads) const {
    const int64_t bytes = rows_.layout.stride;
    const bool weighted = weights_.any();
    const int32_t status =
        parallel_edges(graph_, source_.rows, bytes, threads, [&](int64_t first, int64_t last) {
      if (graph_.edge_codes != nullptr && fits_cache()) coded_rows<false>(first, last);
      else if (graph_.edge_codes != nullptr) coded_rows<true>(first, last);
      else if (weighted) weighted_rows(first, last);
      else plain_rows(first, last);
      emitter_.finish();
    });
    return emitter_.status(status);
  }

 private:
  void plain_rows(int64_t first, int64_t last) const {
    Scratch<int32_t> sums(emitter_.padded());
    for (int64_t i = first; i < last; ++i) {
      const int64_t e = graph_.rowptr[i], end = graph_.rowptr[i + 1], degree = end - e;
      if (QLR_UNLIKELY(degree > kSafeEdges)) {
        huge_row(i);
        continue;
      }
      sum_row<B>(rows_, e, end, sums.data());
      emitter_.row(i, IntegerSums{sums.data(), int32_t(emitter_.center() * degree), float(degree)},
                   degree);
    }
  }
  // Rows of edges with weights that are integers. AHEAD: sources are asked for before they are read.
  template <bool AHEAD>
  void coded_rows(int64_t first, int64_t last) const {
    Scratch<int32_t> sums(emitter_.padded());
    const bool wants_sum = emitter_.center() != 0 || emitter_.has_residual();
    for (int64_t i = first; i < last; ++i) {
      const int64_t e = graph_.rowptr[i], end = graph_.rowptr[i + 1];
      if (QLR_UNLIKELY(end - e > kSafeCodedEdges)) {
        huge_row(i);
        continue;
      }
      const int32_t weight = wants_sum ? sum_of_codes(e, end) : 0;
      if (e < end) coded_row<B, AHEAD>(rows_, graph_.edge_codes, e, end, sums.data());
      else std::memset(sums.data(), 0, rows_.layout.padded_cols() * sizeof(int32_t));
      const float rest = weights_.zero == nullptr ? float(weight) : float(rest_of(e, end));
      emitter_.row(i, IntegerSums{sums.data(), emitter_.center() * weight, rest}, end - e);
    }
  }
  // What zero points of the sources leave, which the sums are to lose besides the center.
  double rest_of(int64_t e, int64_t end) const {
    double total = 0;
    for (; e < end; ++e)
      total += graph_.edge_codes[e] * (double(weights_.zero[graph_.col[e]]) - emitter_.center());
    return total;
  }
  int32_t sum_of_codes(int64_t e, int64_t end) const {
    int32_t total = 0;
    for (; e < end; ++e) total += graph_.edge_codes[e];
    return total;
  }
  // Whether all sources lie in a cache that is near, where to ask for them takes time and saves none.
  bool fits_cache() const { return source_.rows * rows_.layout.stride <= kNearBytes; }
  static constexpr int64_t kNearBytes = 1 << 18;

  // A row whose sums could leave int32: partial sums, each exact, are joined in float.
  void huge_row(int64_t i) const {
    const int64_t begin = graph_.rowptr[i], end = graph_.rowptr[i + 1];
    const bool coded = graph_.edge_codes != nullptr;
    const int64_t safe = coded ? kSafeCodedEdges : kSafeEdges;
    Scratch<int32_t> part(emitter_.padded());
    Scratch<double> total(emitter_.padded());
    Scratch<float> sums(emitter_.padded());
    double rest = 0;
    for (int64_t e = begin; e < end; e += safe) {
      const int64_t stop = std::min(end, e + safe);
      const double weight = coded ? sum_of_codes(e, stop) : stop - e;
      if (coded) coded_row<B, true>(rows_, graph_.edge_codes, e, stop, part.data());
      else sum_row<B>(rows_, e, stop, part.data());
      for (int64_t f = 0; f < source_.cols; ++f)
        total[f] += double(part[f]) - double(emitter_.center()) * weight;
      rest += coded && weights_.zero != nullptr ? rest_of(e, stop) : weight;
    }
    for (int64_t f = 0; f < source_.cols; ++f) sums[f] = static_cast<float>(total[f]);
    emitter_.row(i, FloatSums{sums.data(), float(rest)}, end - begin);
  }
  // Up to kBlockEdges edges of a row, and their weights as the sums want them.
  struct Block {
    int64_t row, e;
    int count;
    bool few;  // so few edges that to split their weights into digits takes longer than to multiply
    WeightBlock weights;
    Digits<B> digits;
  };
  static constexpr int64_t kFewEdges = 4;

  void prepare(Block& block, int64_t row, int64_t e) const {
    block.row = row;
    block.e = e;
    block.count = static_cast<int>(std::min<int64_t>(kBlockEdges, graph_.rowptr[row + 1] - e));
    // Where digits last they are made faster than floats are multiplied.
    block.few = !Digits<B>::kLasting && graph_.rowptr[row + 1] - graph_.rowptr[row] <= kFewEdges;
    if (block.few) return weigh(block, emitter_.has_residual());
    if constexpr (Digits<B>::kLasting) {
      // What is left for the residuals is the sum of what is multiplied by, digit for digit.
      const bool wants_sum = emitter_.has_residual() && weights_.zero == nullptr;
      const bool whole = has_digits_ && graph_.rowptr[row + 1] - graph_.rowptr[row] <= kBlockEdges;
      if (!whole) weigh(block, false);
      const auto digits = whole ? block.digits.read(graph_, row, emitter_.center())
                                : block.digits.fill(block.weights, block.count, emitter_.center());
      if (wants_sum) block.weights.rest = digits.weight();
    } else {
      weigh(block, emitter_.has_residual());
      block.digits.fill(block.weights, block.count, emitter_.center());
    }
  }
  void weigh(Block& block, bool wants_sum) const {
    if (graph_.edge_weight != nullptr)
      for (int i = 0; i < block.count; i += 16)
        prefetch_line(graph_.edge_weight + block.e + i + kWeightsAhead);
    block.weights.fill(weights_, graph_.col, block.e, block.count, wants_sum);
  }
  static constexpr int64_t kWeightsAhead = 256;  // a kilobyte

  // The sums of a row of few edges, edge by edge in floats.
  void add_few(const Block& block, float* sums) const {
    const Layout& layout = rows_.layout;
    const F::vf center = F::set1(static_cast<float>(emitter_.center()));
    const uint8_t* row[kFewEdges];
    F::vf weight[kFewEdges];
    for (int i = 0; i < block.count; ++i) {
      rows_.prefetch(block.e + i, 0, layout.stride);
      row[i] = rows_.row(block.e + i);
      weight[i] = F::set1(block.weights.value[i]);
    }
    for (int64_t byte = 0; byte < layout.stride; byte += F::W) {
      float* const to = sums + byte / layout.unit * layout.unit * kFields + byte % layout.unit;
      for (int k = 0; k < kFields; ++k) {
        F::vf sum = F::zero();
        for (int i = 0; i < block.count; ++i) {
          const F::vf code = F::load_field(row[i] + byte, k * B, (1 << B) - 1);
          sum = F::fma(weight[i], F::sub(code, center), sum);
        }
        F::store(to + k * layout.unit, sum);
      }
    }
  }
  static constexpr int kFields = 8 / B;

  // Digits wait for weights, and sums for digits: so they are made a block ahead.
  void weighted_rows(int64_t first, int64_t last) const {
    Scratch<float> sums(emitter_.padded());
    Block blocks[2];
    prepare(blocks[0], first, graph_.rowptr[first]);
    double rest = 0;
    for (int turn = 0;; turn ^= 1) {
      const Block& now = blocks[turn];
      const int64_t begin = graph_.rowptr[now.row], end = graph_.rowptr[now.row + 1];
      const int64_t e = now.e + now.count, row = now.row + (e == end);
      if (row < last) prepare(blocks[turn ^ 1], row, e);
      if (now.few) add_few(now, sums.data());
      else
        weighted_block<B>(rows_, now.weights, now.digits, now.e, now.count, emitter_.center(),
                          sums.data(), now.e == begin);
      rest += now.weights.rest;
      if (e < end) continue;
      emitter_.row(now.row, FloatSums{sums.data(), float(rest)}, end - begin);
      if (row >= last) return;
      rest = 0;
    }
  }

  const QlrGraph& graph_;
  const QlrPacked& source_;
  PackedRows rows_;
  Emitter emitter_;
  WeightSource weights_;
  bool has_digits_;
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
