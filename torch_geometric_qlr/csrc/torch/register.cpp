// The ops in torch's dispatcher.
#include <new>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "detour.h"

namespace qlr {
namespace {

constexpr const char* kWho = "torch_geometric_qlr";

// Null before any file adds its ops, in whatever order they come: a constant needs no code to run.
Op* first_op = nullptr;

int32_t threads() {
  uint32_t count = 1;
  torch_did(torch().torch_get_num_threads(&count));
  return static_cast<int32_t>(count);
}

// The results, or why there are none. The stack stays as it is.
Refusal attempt(const Op& op, const Value* stack, Owned* results) {
  try {
    const int32_t isa = instruction_set(op.gradient == Gradient::kRefused);
    Call call(stack, op.schema->kinds.c_str(), threads(), isa);
    op.answer(call);
    for (size_t i = 0; i < kMaxResults; ++i) results[i] = std::move(call.results[i]);
    return {QLR_OK, ""};
  } catch (const Refusal& refusal) {
    return refusal;
  } catch (const std::bad_alloc&) {
    return {QLR_NO_MEMORY, ""};
  }
}

// Every op has its schema. A schema without an op is answered elsewhere.
bool join_schemas() {
  for (Op* op = first_op; op != nullptr; op = op->next) {
    op->schema = find_schema(op->name);
    if (op->schema == nullptr) return false;
  }
  return true;
}

bool define_all() {
  const Shim& s = torch();
  Library library = nullptr;
  if (s.aoti_torch_library_init_def("qlr", kWho, 0, &library) != 0) return false;
  for (const Schema& schema : schemas()) {
    int32_t error;
    if (s.torch_library_def_with_tags != nullptr && s.torch_tag_pt2_compliant_tag != nullptr) {
      const int32_t tag = s.torch_tag_pt2_compliant_tag();
      error = s.torch_library_def_with_tags(library, schema.text.c_str(), &tag, 1);
    } else {
      error = s.aoti_torch_library_def(library, schema.text.c_str());
    }
    if (error != 0) return false;
  }
  return true;
}

// The library object stays, as the ops do, until the process ends.
bool implement_all() {
  const Shim& s = torch();
  Library library = nullptr;
  if (s.aoti_torch_library_init_impl("qlr", "CPU", kWho, 0, &library) != 0) return false;
  for (const Op* op = first_op; op != nullptr; op = op->next)
    if (s.torch_library_impl(library, op->name, op->boxed, kTorchVersion) != 0) return false;
  return true;
}

}  // namespace

void add_op(Op& op) { op.next = std::exchange(first_op, &op); }

void run_op(const Op& op, Value* stack, uint64_t outputs) {
  Owned results[kMaxResults];
  const Refusal refusal = attempt(op, stack, results);
  if (refusal.status != QLR_OK) return detour(*op.schema, stack, outputs, refusal);
  release(*op.schema, stack);
  for (uint64_t i = 0; i < outputs; ++i) stack[i] = reinterpret_cast<Value>(results[i].release());
}

}  // namespace qlr

int32_t qlr_bind_torch(const char* path) { return qlr::bind_torch(path) ? 0 : 1; }

int32_t qlr_register_kernels() {
  static const bool registered = qlr::join_schemas() && qlr::implement_all();
  return registered ? 0 : 1;
}

const char* qlr_schemas() { return qlr::schemas_text(); }

int32_t qlr_has_kernel(const char* name) {
  for (const qlr::Op* op = qlr::first_op; op != nullptr; op = op->next)
    if (std::string_view(op->name) == name) return 1;
  return 0;
}

int32_t qlr_register_ops(const char* path) {
  static const bool defined = qlr::bind_torch(path) && qlr::define_all();
  return defined ? qlr_register_kernels() : 1;
}
