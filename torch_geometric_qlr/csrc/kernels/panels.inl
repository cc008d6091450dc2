// The weights of a product as Products read them: panels of Dot::W outputs, and in a panel groups of
// as many inputs as fit into four bytes, those of an output side by side.
template <typename Weight>
struct Panels {
  static constexpr int64_t kGroup = 4 / sizeof(Weight);
  static constexpr int64_t kInputs = Dot::kInputs;  // are padded with zeros to a multiple of this

  Panels(int64_t inputs, int64_t outputs)
      : groups((inputs + kInputs - 1) / kInputs * kInputs / kGroup),
        padded((outputs + Dot::W - 1) / Dot::W * Dot::W), start(padded),
        values_(padded * groups * kGroup) {}

  // `weights` of an output, inputs() of them.
  void set(int64_t output, const Weight* weights) {
    Weight* const to =
        values_.data() + (output / Dot::W * groups * Dot::W + output % Dot::W) * kGroup;
    for (int64_t g = 0; g < groups; ++g)
      std::memcpy(to + g * Dot::W * kGroup, weights + g * kGroup, 4);
  }
  const Weight* of(int64_t panel) const {
    return values_.data() + panel * groups * Dot::W * kGroup;
  }
  int64_t count() const { return padded / Dot::W; }
  int64_t inputs() const { return groups * kGroup; }

  int64_t groups, padded;
  int64_t words = 0;       // groups whose products, summed up, fit 16 bits; 0 if nobody has looked
  Scratch<int32_t> start;  // what the sums begin with

 private:
  Scratch<Weight> values_;
};
