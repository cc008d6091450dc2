// Where the rows of a product come from. An input has `rows`, `bits`, the `layout` of its codes, and
// `center`, the integer that is taken from all of them. Its Reader, of one thread, gives blocks of
// rows, one after the other: their codes, and scale and zero point, by the number within the block.

// Codes of a row, for a product. What is past the last meets weights of zero.
template <typename Code>
inline void load_codes(const uint8_t* packed, const Layout& layout, Code* codes) {
  if constexpr (sizeof(Code) > 1) std::copy_n(packed, layout.padded_cols(), codes);  // of 8 bits
  else unpack_row(packed, layout, codes);
}

// An integer that is near the zero points of rows, if they have one each.
inline int32_t middle_code(int32_t bits) {
  return near_zero_point(static_cast<float>(1 << (bits - 1)), (1 << bits) - 1);
}

// Packed codes.
struct PackedInput {
  const QlrPacked& x;
  int64_t rows;
  int32_t bits;
  Layout layout;
  int32_t center;

  explicit PackedInput(const QlrPacked& packed)
      : x(packed), rows(x.rows), bits(x.bits), layout(x.cols, x.bits),
        center(x.axis == QLR_PER_TENSOR ? near_zero_point(x.zero[0], (1 << bits) - 1)
                                        : middle_code(bits)) {}

  class Reader {
   public:
    Reader(const PackedInput& input, int64_t) : in_(input) {}
    void begin(int64_t row) { first_ = row; }
    template <typename Code>
    void load(int r, Code* codes) const {
      load_codes(in_.x.data + (first_ + r) * in_.layout.stride, in_.layout, codes);
    }
    float scale(int r) const { return in_.x.scale[at(r)]; }
    float zero(int r) const { return in_.x.zero[at(r)]; }
    bool finite() const { return true; }

   private:
    int64_t at(int r) const { return in_.x.axis == QLR_PER_ROW ? first_ + r : 0; }
    const PackedInput& in_;
    int64_t first_ = 0;
  };
};

// Packs rows by one grid, with scale and zero point as OwnRowPacker leaves them.
class GridPacker {
 public:
  GridPacker(const QlrQuantizer& q, int64_t rows, int64_t cols)
      : rows_(q, rows, cols), scale_(q.scale[0]), zero_(q.zero[0]) {
    if (q.truncate) RangeGrid(q.bits, true, false).read_back(scale_, zero_);
  }
  bool pack(const float* x, int64_t rows, uint8_t* packed, float* scale, float* zero) const {
    std::fill_n(scale, rows, scale_);
    std::fill_n(zero, rows, zero_);
    return rows_.pack(x, packed, 0, rows);
  }
  float zero() const { return zero_; }

 private:
  RowPacker rows_;
  float scale_, zero_;
};

// Floats, which a GridPacker or an OwnRowPacker makes codes of.
template <typename Packer>
struct FloatInput {
  const float* x;
  int64_t rows, cols;
  int32_t bits;
  Layout layout;
  int32_t center;
  const Packer& packer;

  FloatInput(const float* values, int64_t rows_, int64_t cols_, int32_t bits_, int32_t center_,
             const Packer& packer_)
      : x(values), rows(rows_), cols(cols_), bits(bits_), layout(cols, bits), center(center_),
        packer(packer_) {}

  class Reader {
   public:
    // Up to row `end`.
    Reader(const FloatInput& input, int64_t end)
        : in_(input), end_(end), packed_(kRows * input.layout.stride) {}
    void begin(int64_t row) {
      if (row >= stop_) {
        first_ = row;
        stop_ = std::min(row + kRows, end_);
        finite_ &=
            in_.packer.pack(in_.x + row * in_.cols, stop_ - row, packed_.data(), scale_, zero_);
      }
      at_ = row - first_;
    }
    template <typename Code>
    void load(int r, Code* codes) const {
      load_codes(packed_.data() + (at_ + r) * in_.layout.stride, in_.layout, codes);
    }
    float scale(int r) const { return scale_[at_ + r]; }
    float zero(int r) const { return zero_[at_ + r]; }
    bool finite() const { return finite_; }

   private:
    static constexpr int64_t kRows = 8 * Products::kBlockRows;  // are in the first cache together

    const FloatInput& in_;
    int64_t end_, first_ = 0, stop_ = 0, at_ = 0;
    Scratch<uint8_t> packed_;
    float scale_[kRows], zero_[kRows];
    bool finite_ = true;
  };
};
