// Why a kernel does not answer a call.
#pragma once

#include "../qlr.h"

namespace qlr {

// Beside the statuses of qlr.h. Python knows the numbers (ops/cpu/library.py).
enum : int32_t {
  QLR_MISFIT = 100,  // the arguments do not go together; Python has the words
  QLR_ASK = 101,     // nobody has looked yet: a back end was chosen, or gradients are recorded
  QLR_FAILED = 102,  // torch itself did not do what it was asked for
};

struct Refusal {
  int32_t status;
  const char* reason;  // of QLR_UNSUPPORTED: what there is no kernel for; empty if nobody need know
};

// Everything that decides about an address is required before anything is read.
inline void require(bool fits) {
  if (!fits) throw Refusal{QLR_MISFIT, ""};
}

}  // namespace qlr
