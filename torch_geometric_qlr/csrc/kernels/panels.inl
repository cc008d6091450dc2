// The weights of a product as Products read them: panels of Dot::W outputs, and in a panel groups of
// four inputs, those of an output side by side, as signed bytes.
struct Panels {
  Panels(int64_t inputs, int64_t outputs)
      : groups((inputs + kInputs - 1) / kInputs * kInputs / 4),
        padded((outputs + Dot::W - 1) / Dot::W * Dot::W), start(padded),
        bytes_(padded * groups * 4) {}

  int8_t& at(int64_t output, int64_t input) {
    return bytes_[output / Dot::W * groups * Dot::W * 4 + input / 4 * Dot::W * 4 +
                  output % Dot::W * 4 + input % 4];
  }
  const int8_t* of(int64_t panel) const { return bytes_.data() + panel * groups * Dot::W * 4; }
  int64_t count() const { return padded / Dot::W; }

  static constexpr int64_t kInputs = Dot::kInputs;  // are padded with zeros to a multiple of this
  int64_t groups, padded;
  Scratch<int32_t> start;  // what the sums begin with

 private:
  Scratch<int8_t> bytes_;
};
