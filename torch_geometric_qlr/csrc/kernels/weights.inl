// The weights of a block of edges: edge weight times source weight, and their sums.

struct WeightSource {
  const float* edge;    // [edges] or null
  const float* source;  // [source rows] or null
  const float* zero;    // zero point per source row, or null
  float center;

  bool any() const { return edge != nullptr || source != nullptr || zero != nullptr; }
};

class WeightBlock {
 public:
  const float* value = nullptr;  // `count` of them
  // What FloatSums need: with a zero point per source row the sum of value times (zero - center),
  // else the sum of the values, where it is asked for.
  float rest = 0.f;

  void fill(const WeightSource& from, const int32_t* col, int64_t e, int count, bool wants_sum) {
    if (from.source == nullptr && from.zero == nullptr) value = from.edge + e;
    else multiply(from, col, e, count);
    if (wants_sum && from.zero == nullptr) add_up(count);
  }

 private:
  void multiply(const WeightSource& from, const int32_t* col, int64_t e, int count) {
    F::vf zeros = F::zero();
    for (int i = 0; i < count; i += F::W) {
      const int left = count - i;
      // Lanes past the end have index 0, which is always there.
      const F::vi index = F::load_int_partial(col + e + i, left);
      F::vf w = from.edge != nullptr ? F::load_partial(from.edge + e + i, left) : F::set1(1.f);
      if (from.source != nullptr) w = F::mul(w, F::gather(from.source, index));
      F::store(product_ + i, w);
      if (from.zero != nullptr) {
        const F::vf offset = F::sub(F::gather(from.zero, index), F::set1(from.center));
        zeros = F::fma(F::load_partial(product_ + i, left), offset, zeros);
      }
    }
    value = product_;
    rest = static_cast<float>(F::sum(zeros));
  }
  void add_up(int count) {
    F::vf total = F::zero();
    for (int i = 0; i < count; i += F::W)
      total = F::add(total, F::load_partial(value + i, count - i));
    rest = static_cast<float>(F::sum(total));
  }

  alignas(64) float product_[kBlockEdges + F::W];
};
