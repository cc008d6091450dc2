// The ops: each reads its arguments in the order of its schema, requires what decides about an
// address, brings the arguments into form and asks a kernel. What goes wrong is thrown: a Refusal.
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

void quantize_pack(Call& call);
void quantize_rows(Call& call);
void pack(Call& call);
void unpack(Call& call);
void dequantize_packed(Call& call);
void index_select(Call& call);
void packed_spmm(Call& call);
void packed_propagate(Call& call);
void packed_smp(Call& call);
void packed_extremum(Call& call);
void packed_attention(Call& call);
void packed_linear(Call& call);
void spmm(Call& call);
void csr(Call& call);
void fake_quantize(Call& call);
void fake_quantize_backward(Call& call);
void observed_quantize(Call& call);
void observed_quantize_backward(Call& call);

}  // namespace qlr
