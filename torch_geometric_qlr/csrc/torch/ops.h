// The ops: each reads its arguments in the order of its schema, requires what decides about an
// address, brings the arguments into form and asks a kernel. What goes wrong is thrown: a Refusal.
// A file of ops registers its own; a new op is a new file.
#pragma once

#include "prepared.h"

namespace qlr {

constexpr size_t kMaxResults = 7;

// One call of one op.
struct Call {
  Arguments in;
  int32_t threads, isa;
  Owned results[kMaxResults];
  Prepared prepared;

  Call(const Value* stack, const char* kinds, int32_t threads_, int32_t isa_)
      : in(stack, kinds), threads(threads_), isa(isa_) {}
};

// What a kernel said. `missing` is the combination that it might not take.
inline void answered(int32_t status,
                     const char* missing = "this combination of widths and ranges") {
  if (status != QLR_OK) throw Refusal{status, status == QLR_UNSUPPORTED ? missing : ""};
}

struct Schema;

enum class Gradient { kNone, kRefused };  // kRefused: floats go in, and no gradient would come out

// An op as torch's dispatcher knows it.
struct Op {
  const char* name;
  void (*answer)(Call&);
  void (*boxed)(Value* stack, uint64_t inputs, uint64_t outputs);
  Gradient gradient;
  Op* next;              // of all that this library has
  const Schema* schema;  // found by name when torch is told
};

void add_op(Op& op);
void run_op(const Op& op, Value* stack, uint64_t outputs);

// Makes a function the kernel of an op, in the file where it stands; no list names it:
//   const Kernel<packed_spmm> kPackedSpmm("packed_spmm", Gradient::kRefused);
template <void (*answer)(Call&)>
class Kernel {
  static inline Op op{};
  static void boxed(Value* stack, uint64_t, uint64_t outputs) { run_op(op, stack, outputs); }

 public:
  Kernel(const char* name, Gradient gradient) {
    op = {name, answer, boxed, gradient, nullptr, nullptr};
    add_op(op);
  }
};

}  // namespace qlr
