// Smoothness-aware message propagation: all steps on packed codes in one call. A step sends the
// representation H and then its change G, both quantized; between them it is arithmetic on floats:
//
//   H' = (1 - (1 + mu) eta) H + mu eta A H + eta H_0,   G = H' - H,   H+ = H' + 2 eta lambda D
//
// with D = A G (or G - A G), and the multiplier follows the trace of G^T (G - A G).

class SmpSteps {
 public:
  SmpSteps(const QlrGraph& graph, const float* x, int64_t cols, const QlrSmp& smp, int threads)
      : graph_(graph), x_(x), cols_(cols), smp_(smp), threads_(threads),
        multiplier_(smp.multiplier), slack_(smp.slack),
        pieces_(std::max<int64_t>(1, std::min<int64_t>(64, size() / 8192))), traces_(pieces_) {}

  // The last result is in `out`; `work` has room for three others.
  int32_t run(const QlrQuantizer* quantizers, const QlrPacked* sources, float* work, float* out) {
    float* const change = work + size();
    float* const moved = change + size();
    const float* h = x_;
    for (int64_t k = 0; k < smp_.steps; ++k) {
      float* const next = (smp_.steps - k) % 2 ? out : work;
      QlrEpilogue gradient{smp_.row_scale, nullptr, x_, smp_.eta, 0, 0, next, nullptr, nullptr};
      int32_t status = hop(h, quantizers[2 * k], sources[2 * k], smp_.spread, gradient);
      if (status != QLR_OK) return status;
      subtract(h, next, change);
      QlrEpilogue plain{smp_.row_scale, nullptr, nullptr, 0.f, 0, 0, moved, nullptr, nullptr};
      status = hop(change, quantizers[2 * k + 1], sources[2 * k + 1], 1.f, plain);
      if (status != QLR_OK) return status;
      follow(correct(change, moved, next));
      h = next;
    }
    return QLR_OK;
  }

 private:
  int64_t size() const { return graph_.rows * cols_; }

  int32_t hop(const float* values, const QlrQuantizer& quantizer, const QlrPacked& source,
              float weight, const QlrEpilogue& epilogue) {
    const int32_t coded = quantize_pack(values, graph_.rows, cols_, quantizer,
                                        const_cast<uint8_t*>(source.data), threads_);
    if (coded != QLR_OK) return coded;
    const float scale = *source.scale * weight;
    QlrPacked weighted = source;
    weighted.scale = &scale;
    const int32_t status = packed_spmm(graph_, weighted, epilogue, threads_);
    graph_.checked = status == QLR_OK;
    return status;
  }
  // What is kept of h goes to next; then change = next - h.
  void subtract(const float* h, float* next, float* change) const {
    const F::vf keep = F::set1(smp_.kept);
    vectors([&](int64_t i, int64_t count) {
      const F::vf before = F::load_partial(h + i, count);
      const F::vf after = F::fma(keep, before, F::load_partial(next + i, count));
      put(next + i, after, count);
      put(change + i, F::sub(after, before), count);
    });
  }
  // Adds the correction to next, and returns the trace.
  float correct(const float* change, const float* moved, float* next) {
    const F::vf step = F::set1(2.f * smp_.eta * multiplier_);
    pieces([&](int64_t piece, int64_t first, int64_t last) {
      double total = 0;
      for (int64_t run = first; run < last; run += kRun) {  // short float sums joined in double
        F::vf part = F::zero();
        for (int64_t i = run, end = std::min(last, run + kRun); i < end; i += F::W) {
          const int64_t count = std::min<int64_t>(F::W, end - i);
          const F::vf g = F::load_partial(change + i, count);
          const F::vf a_g = F::load_partial(moved + i, count), rest = F::sub(g, a_g);
          const F::vf direction = smp_.lagrangian ? rest : a_g;
          put(next + i, F::fma(step, direction, F::load_partial(next + i, count)), count);
          part = F::fma(g, rest, part);
        }
        total += F::sum(part);
      }
      traces_[piece] = total;
    });
    double trace = 0;
    for (int64_t p = 0; p < pieces_; ++p) trace += traces_[p];
    return static_cast<float>(trace);
  }
  void follow(float trace) {
    slack_ = slack_ + 2.f * smp_.eta_slack * multiplier_ * slack_;
    multiplier_ = multiplier_ + smp_.eta_lambda * (smp_.bound - slack_ * slack_ - trace);
    if (smp_.projection > 0) multiplier_ = std::max(multiplier_, 0.f);
    if (smp_.projection < 0) multiplier_ = std::min(multiplier_, 0.f);
  }
  static constexpr int64_t kRun = 32 * F::W;

  // body(piece, first, last) for all pieces, which do not depend on the number of threads.
  template <typename Body>
  void pieces(const Body& body) const {
    const int64_t total = size();
    parallel_pieces(pieces_, pieces_, total < (1 << 15) ? 1 : threads_,
                    [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) body(p, total * p / pieces_, total * (p + 1) / pieces_);
    });
  }
  // body(first, count) for all vectors.
  template <typename Body>
  void vectors(const Body& body) const {
    pieces([&](int64_t, int64_t i, int64_t last) {
      for (; i < last; i += F::W) body(i, std::min<int64_t>(F::W, last - i));
    });
  }
  static void put(float* to, F::vf a, int64_t count) {
    if (count == F::W) return F::store(to, a);
    alignas(64) float part[F::W];
    F::store(part, a);
    std::memcpy(to, part, count * sizeof(float));
  }

  QlrGraph graph_;
  const float* x_;
  int64_t cols_;
  const QlrSmp& smp_;
  int threads_;
  float multiplier_, slack_;
  int64_t pieces_;
  Scratch<double> traces_;
};

inline int32_t packed_smp(const QlrGraph& graph, const float* x, int64_t cols,
                          const QlrQuantizer* quantizers, const QlrPacked* sources,
                          const QlrSmp& smp, float* work, float* out, int threads) {
  return SmpSteps(graph, x, cols, smp, threads).run(quantizers, sources, work, out);
}
