// Products of rows most of whose codes stand for zero, such as bags of words: only the groups of inputs
// that hold another code are multiplied. With zero code z, weights w and g over the groups that are left,
//
//   sum over k of c_k w_k = sum over k in g of (c_k - z) w_k + z sum over all k of w_k.

template <int B>
class SparseRows {
 public:
  using Code = Dot::Code<B>;
  using Weight = Dot::Weight<B>;

  SparseRows(const Panels<Weight>& panels, const int32_t* weight_sums)
      : panels_(panels), weight_sums_(weight_sums), groups_(kRows * panels.groups),
        zeros_(panels.padded),
        skips_(panels.count() < kLeastPanels || panels.groups < kLeastGroups ? kNever : 0) {}

  // Whether these rows are worth it. Their zero codes are zero_code(r).
  template <typename ZeroCode>
  bool suit(const Code* codes, int64_t stride, int rows, const ZeroCode& zero_code) {
    if (skips_ > 0) {
      skips_ -= skips_ < kNever;
      return false;
    }
    int64_t total = 0;
    for (int r = 0; r < rows; ++r) {
      zero_[r] = zero_code(r);
      total += count_[r] = find(codes + r * stride, zero_[r], groups_.data() + r * panels_.groups);
    }
    if (total * kCost <= rows * panels_.groups) return true;
    skips_ = kSkips;
    return false;
  }
  // What Products::run computes, for the rows that were found to suit.
  void run(const Code* codes, int64_t stride, int rows, int32_t* out) {
    for (int r = 0; r < rows; ++r) {
      const Code* const row = codes + r * stride;
      const uint16_t* const groups = groups_.data() + r * panels_.groups;
      int32_t* const to = out + r * panels_.padded;
      const int32_t* const start = panels_.start.data();
      const int32_t zero = zero_[r];
      for (int64_t o = 0; o < panels_.padded; ++o) to[o] = wrapped(start[o], zero, weight_sums_[o]);
      add(groups, count_[r], to, [&](int64_t g) { return Dot::repeat4(row + g * kGroup); });
      if (zero == 0) continue;
      const uint32_t pattern = repeated(zero);
      std::memset(zeros_.data(), 0, panels_.padded * sizeof(int32_t));
      add(groups, count_[r], zeros_.data(),
          [&](int64_t) { return Dot::repeat4(reinterpret_cast<const Code*>(&pattern)); });
      for (int64_t o = 0; o < panels_.padded; ++o) to[o] = wrapped(to[o], -1, zeros_[o]);
    }
  }

 private:
  static constexpr int kRows = Products::kBlockRows;
  static constexpr int64_t kGroup = Panels<Weight>::kGroup;
  // With fewer, a look at the codes takes as long as the product.
  static constexpr int64_t kLeastPanels = 4, kLeastGroups = 32;
  static constexpr int64_t kCost = 6;  // of a group by itself, in groups of a block of rows
  static constexpr int kSkips = 15;    // blocks that are not looked at after one that did not suit
  static constexpr int kNever = 1 << 30;

  // a + b c, which may leave int32 on the way to a sum that does not.
  static int32_t wrapped(int32_t a, int32_t b, int32_t c) {
    return static_cast<int32_t>(uint32_t(a) + uint32_t(b) * uint32_t(c));
  }
  static uint32_t repeated(int32_t code) {
    return static_cast<uint32_t>(code) * (sizeof(Code) == 1 ? 0x01010101u : 0x00010001u);
  }
  static int lowest_bit(uint32_t bits) {
#if defined(__GNUC__)
    return __builtin_ctz(bits);
#else
    int k = 0;
    for (; !(bits & 1); bits >>= 1) ++k;
    return k;
#endif
  }
  int64_t find(const Code* row, int32_t zero, uint16_t* to) const {
    const F::vi pattern = F::set1_int(static_cast<int32_t>(repeated(zero)));
    int64_t count = 0;
    for (int64_t g = 0; g < panels_.groups; g += F::W) {
      uint32_t others = F::differing(F::load_words(row + g * kGroup), pattern);
      if (g + F::W > panels_.groups) others &= (uint32_t{1} << (panels_.groups - g)) - 1;
      for (; others != 0; others &= others - 1)
        to[count++] = static_cast<uint16_t>(g + lowest_bit(others));
    }
    return count;
  }
  // Adds to `out` the products of some groups with all outputs, a few panels at a time.
  template <typename CodesOf>
  void add(const uint16_t* groups, int64_t count, int32_t* out, const CodesOf& codes_of) const {
    constexpr int kMost = 4;
    for (int64_t first = 0; first < panels_.count(); first += kMost) {
      const int64_t left = panels_.count() - first;
      if (left >= 4) add_panels<4>(groups, count, first, out, codes_of);
      else if (left == 3) add_panels<3>(groups, count, first, out, codes_of);
      else if (left == 2) add_panels<2>(groups, count, first, out, codes_of);
      else add_panels<1>(groups, count, first, out, codes_of);
    }
  }
  template <int P, typename CodesOf>
  void add_panels(const uint16_t* groups, int64_t count, int64_t first, int32_t* out,
                  const CodesOf& codes_of) const {
    Dot::v acc[P];
    const Weight* panel[P];
    for (int p = 0; p < P; ++p) {
      acc[p] = Dot::load_sums(out + (first + p) * Dot::W);
      panel[p] = panels_.of(first + p);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t g = groups[i];
      const Dot::v a = codes_of(g);
      for (int p = 0; p < P; ++p)
        acc[p] = Dot::template dot<B>(acc[p], a, Dot::load(panel[p] + g * Dot::W * kGroup));
    }
    for (int p = 0; p < P; ++p) Dot::store(out + (first + p) * Dot::W, acc[p]);
  }

  const Panels<Weight>& panels_;
  const int32_t* weight_sums_;
  Scratch<uint16_t> groups_;
  Scratch<int32_t> zeros_;
  int64_t count_[kRows];
  int32_t zero_[kRows];
  int skips_;
};
