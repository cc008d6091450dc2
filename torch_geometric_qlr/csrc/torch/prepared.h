// From tensors to the structures of the kernels: contiguous, of one type, and kept alive for as long
// as a call lasts. What is in that form already is read where it is.
#pragma once

#include <vector>

#include "arguments.h"

namespace qlr {

// An output, and how it is filled.
struct Output {
  QlrQuantizer quantizer;
  QlrEpilogue epilogue;
};

class Prepared {
 public:
  // The address of a contiguous version of this type; null for what was left out.
  const void* as(const View& x, int32_t dtype);
  const float* floats(const View& x) { return static_cast<const float*>(as(x, torch().float32)); }
  const uint8_t* bytes(const View& x) { return static_cast<const uint8_t*>(as(x, torch().uint8)); }
  // Memory for numbers that are computed on the way.
  template <typename T>
  T* room(int64_t count) {
    buffers_.emplace_back(bytes_of(count, sizeof(T)));
    return static_cast<T*>(buffers_.back().data());
  }

  QlrPacked packed(const PackedArgument& packed);
  QlrQuantizer quantizer(const QuantizerArgument& quantizer, int64_t rows);
  QlrRowQuantizer row_quantizer(const QuantizerArgument& quantizer, bool aligned);
  std::vector<QlrQuantizer> steps(const QuantizerArgument& steps);
  QlrGraph graph(const GraphArgument& graph, int64_t sources);
  // The same for kernels that take weights of int8 as integers.
  QlrGraph coded_graph(const GraphArgument& graph, int64_t sources);
  // All but where the result goes.
  QlrEpilogue epilogue(const EpilogueArgument& epilogue);
  // That as well: the result that `to` will fill, whose structures `to` keeps.
  Owned output(const EpilogueArgument& epilogue, int64_t rows, int64_t cols, Output& to);

 private:
  struct Affine {
    int32_t axis;
    const float* scale;
    const float* zero;
  };
  Affine affine(const View& scale, const View& zero, int64_t rows);
  const int32_t* columns(const View& col, int64_t sources);

  std::vector<Owned> tensors_;
  std::vector<Buffer> buffers_;
};

// Bytes from one packed row to the next, of codes of this width.
int64_t row_stride(int64_t cols, int64_t bits);

}  // namespace qlr
