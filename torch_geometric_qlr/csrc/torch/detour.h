// What a call does that no kernel answers: it goes to the op's companion in Python, which has the
// words for what is wrong, the choice of the back end, and the reference (ops/cpu/companions.py).
#pragma once

#include "ops.h"
#include "schema.h"

namespace qlr {

// The instruction set for this call; throws QLR_ASK where that, or whether there is an answer at all,
// is for Python to say. `no_gradient`: of an op that must not lose one.
int32_t instruction_set(bool no_gradient);

// Ends a call that no kernel answered. The stack is used up: what comes back on it are the results of
// the companion. Throws std::runtime_error where that has none, or where there is no Python.
void detour(const Schema& schema, Value* stack, uint64_t outputs, const Refusal& refusal);

// A callee owns what it is called with.
void release(const Schema& schema, Value* stack);

}  // namespace qlr
