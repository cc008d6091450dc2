// The weights of a block of edges: edge weight times source weight, and their sums.

struct WeightSource {
  const float* edge;    // [edges] or null
  const float* source;  // [source rows] or null
  const float* zero;    // zero point per source row, or null
  float center;

  bool any() const { return edge != nullptr || source != nullptr || zero != nullptr; }
};

struct WeightBlock {
  alignas(64) float value[kBlockEdges + F::W];
  float sum;       // of the values
  float largest;   // of their absolute values
  float zero_sum;  // of value times (zero of the source row - center)

  void fill(const WeightSource& from, const int32_t* col, int64_t e, int count) {
    alignas(64) static const float ones[16] = {1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f,
                                               1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f};
    F::vf total = F::zero(), zeros = F::zero(), top = F::zero();
    for (int i = 0; i < count; i += F::W) {
      const int left = count - i;
      // Lanes past the end have weight 0 and index 0.
      F::vf w = F::load_partial(from.edge != nullptr ? from.edge + e + i : ones, left);
      if (from.source != nullptr || from.zero != nullptr) {
        const F::vi index = F::load_int_partial(col + e + i, left);
        if (from.source != nullptr) w = F::mul(w, F::gather(from.source, index));
        if (from.zero != nullptr)
          zeros = F::fma(w, F::sub(F::gather(from.zero, index), F::set1(from.center)), zeros);
      }
      F::store(value + i, w);
      total = F::add(total, w);
      top = F::max(top, F::max(w, F::sub(F::zero(), w)));
    }
    largest = F::largest(top);
    sum = static_cast<float>(F::sum(total));
    zero_sum = from.zero != nullptr ? static_cast<float>(F::sum(zeros)) : 0.f;
  }
};
