// What a call does that no kernel answers: it goes to the op's companion in Python, which has the
// words for what is wrong, the choice of the back end, and the reference (ops/companions.py).
#pragma once

#include "ops.h"
#include "schema.h"

namespace qlr {

// The instruction set for this call; throws QLR_ASK where that, or whether there is an answer at all,
// is for Python to say. `no_gradient`: of an op that must not lose one.
int32_t instruction_set(bool no_gradient);

// Hands the stack to the companion, which takes all of it. On return the results are on the stack.
void go_to_companion(const Schema& schema, Value* stack, uint64_t outputs, const Refusal& refusal);

}  // namespace qlr
