// The arguments of an op in the order of its schema, and what must be true of them: the meaning of
// ops/definitions and ops/checks.py, without words. What does not fit is a Refusal, and Python says
// what is wrong.
#pragma once

#include <string_view>

#include "tensors.h"

namespace qlr {

// Reads what an op is called with. What it hands out still belongs to the stack.
class Arguments {
 public:
  // `kinds` has one letter per argument: see schema.h.
  Arguments(const Value* stack, const char* kinds) : stack_(stack), kinds_(kinds) {}

  View tensor() { return View(reinterpret_cast<Handle>(next('t'))); }
  View optional() {
    const Value* const box = reinterpret_cast<const Value*>(next('o'));
    return box == nullptr ? View() : View(reinterpret_cast<Handle>(*box));
  }
  int64_t integer() { return static_cast<int64_t>(next('i')); }
  bool flag() { return (next('b') & 0xff) != 0; }
  double number();
  std::string_view word();

 private:
  Value next(char kind) {
    require(*kinds_ == kind);
    ++kinds_;
    return *stack_++;
  }
  const Value* stack_;
  const char* kinds_;
};

// Arguments that come together.
struct PackedArgument {
  View data;
  int64_t cols, bits;
  View scale, zero;
  int64_t rows() const { return data.sizes[0]; }
};
struct QuantizerArgument {
  View scale, zero;
  int64_t bits = 8;
  bool truncate = false;
  View skew;
};
struct GraphArgument {
  View rowptr, col, edge_weight, source_weight;
  int64_t rows() const { return rowptr.numel - 1; }
  int64_t edges() const { return col.numel; }
};
// What happens to sums.
struct EpilogueArgument {
  View row_scale, bias, addend;
  double addend_scale = 1.0;
  bool mean = false, relu = false;
  QuantizerArgument output;  // without a scale the result is float
};

PackedArgument read_packed(Arguments& in);
GraphArgument read_graph(Arguments& in);
QuantizerArgument read_quantizer(Arguments& in);  // scale, zero point, bits, truncate, skew
QuantizerArgument read_output(Arguments& in);     // the same, all of it optional

void check_matrix(const View& x, uint64_t dtypes);
void check_columns(int64_t cols);
void check_width(int64_t bits);          // of a code
void check_storage_width(int64_t bits);  // of a packed code
// A scale and a zero point per tensor, row or column, that agree with each other.
void check_params(const View& scale, const View& zero, int64_t rows, int64_t cols);
// Real numbers, as many as that, if there are any.
void check_numbers(const View& x, int64_t count);
void check_packed(const PackedArgument& packed);
void check_quantizer(const QuantizerArgument& quantizer, int64_t rows, int64_t cols);
// Of rows whose ranges are their own: the scale is what multiplies theirs.
void check_row_quantizer(const QuantizerArgument& quantizer);
void check_graph(const GraphArgument& graph, int64_t sources);
void check_epilogue(const EpilogueArgument& epilogue, int64_t rows, int64_t cols);
// Quantizers per tensor, as vectors of their numbers.
void check_steps(const QuantizerArgument& steps);

}  // namespace qlr
