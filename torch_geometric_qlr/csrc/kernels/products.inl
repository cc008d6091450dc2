// Rows of codes times panels of weights with vectors, kBlockRows at a time.

#include "panels.inl"

struct Products {
  static constexpr int kBlockRows = 6;

  // B is 8 if both operands may need all of 8 bits. Rows are `stride` codes apart, those of `out`
  // panels.padded integers.
  template <int B>
  void run(const Dot::Code<B>* x, int64_t stride, const Panels<Dot::Weight<B>>& panels,
           int32_t* out) const {
    several<B, kMost>(x, stride, panels, 0, out);
  }

 private:
  static constexpr int kMost =
      F::W == 8 ? 2 : 4;  // panels at once: accumulators are rows times panels

  // P panels at a time, then fewer.
  template <int B, int P>
  static void several(const Dot::Code<B>* x, int64_t stride, const Panels<Dot::Weight<B>>& panels,
                      int64_t first, int32_t* out) {
    for (; first + P <= panels.count(); first += P) {
      if constexpr (Dot::kWords && B < 8) {
        if (panels.words >= kFewWords) {
          words_block<Dot, P>(x, stride, panels, first, out);
          continue;
        }
      }
      block<B, P>(x, stride, panels, first, out);
    }
    if constexpr (P > 1) several<B, P - 1>(x, stride, panels, first, out);
  }
  // To widen sums more often takes longer than to add in 32 bits at once.
  static constexpr int64_t kFewWords = 4;

  template <typename Dot, int P, typename Weight>  // Dot as a parameter: not every one has words
  static void words_block(const uint8_t* x, int64_t stride, const Panels<Weight>& panels,
                          int64_t first, int32_t* out) {
    const int32_t* const start = panels.start.data() + first * Dot::W;
    const Weight* panel[P];
    for (int p = 0; p < P; ++p) panel[p] = panels.of(first + p);
    for (int64_t g = 0; g == 0 || g < panels.groups;) {
      const bool begins = g == 0;
      const int64_t stop = std::min(panels.groups, g + panels.words);
      typename Dot::v acc[kBlockRows][P];
      for (int r = 0; r < kBlockRows; ++r)
        for (int p = 0; p < P; ++p) acc[r][p] = Dot::zero();
      for (; g < stop; ++g) {
        typename Dot::v b[P];
        for (int p = 0; p < P; ++p) b[p] = Dot::load(panel[p] + g * Dot::W * 4);
        for (int r = 0; r < kBlockRows; ++r) {
          const typename Dot::v a = Dot::repeat4(x + r * stride + g * 4);
          for (int p = 0; p < P; ++p) acc[r][p] = Dot::add_pairs(acc[r][p], a, b[p]);
        }
      }
      for (int r = 0; r < kBlockRows; ++r)
        for (int p = 0; p < P; ++p) {
          int32_t* const to = out + r * panels.padded + (first + p) * Dot::W;
          const typename Dot::v sum = Dot::load_sums(begins ? start + p * Dot::W : to);
          Dot::store(to, Dot::add_words(sum, acc[r][p]));
        }
      if (panels.groups == 0) break;
    }
  }
  template <int B, int P>
  static void block(const Dot::Code<B>* x, int64_t stride, const Panels<Dot::Weight<B>>& panels,
                    int64_t first, int32_t* out) {
    constexpr int64_t kGroup = Panels<Dot::Weight<B>>::kGroup;
    Dot::v acc[kBlockRows][P];
    for (int p = 0; p < P; ++p) {
      const Dot::v start = Dot::load_sums(panels.start.data() + (first + p) * Dot::W);
      for (int r = 0; r < kBlockRows; ++r) acc[r][p] = start;
    }
    const Dot::Weight<B>* panel[P];
    for (int p = 0; p < P; ++p) panel[p] = panels.of(first + p);
    for (int64_t g = 0; g < panels.groups; ++g) {
      Dot::v b[P];
      for (int p = 0; p < P; ++p) b[p] = Dot::load(panel[p] + g * Dot::W * kGroup);
      for (int r = 0; r < kBlockRows; ++r) {
        const Dot::v a = Dot::repeat4(x + r * stride + g * kGroup);
        for (int p = 0; p < P; ++p) acc[r][p] = Dot::template dot<B>(acc[r][p], a, b[p]);
      }
    }
    for (int r = 0; r < kBlockRows; ++r)
      for (int p = 0; p < P; ++p)
        Dot::store(out + r * panels.padded + (first + p) * Dot::W, acc[r][p]);
  }
};
