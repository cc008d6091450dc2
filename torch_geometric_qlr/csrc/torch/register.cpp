// The ops in torch's dispatcher.
#include <array>
#include <new>
#include <stdexcept>
#include <utility>

#include "detour.h"

namespace qlr {
namespace {

struct Op {
  const char* name;
  void (*answer)(Call&);
  // Floats go in, and no gradient comes out: who records gradients is refused.
  bool no_gradient;
  const Schema* schema;
};

Op ops[] = {
    {"quantize_pack", quantize_pack, true, nullptr},
    {"quantize_rows", quantize_rows, true, nullptr},
    {"csr", csr, false, nullptr},
    {"pack", pack, false, nullptr},
    {"unpack", unpack, false, nullptr},
    {"dequantize_packed", dequantize_packed, true, nullptr},
    {"index_select", index_select, false, nullptr},
    {"packed_spmm", packed_spmm, true, nullptr},
    {"packed_propagate", packed_propagate, true, nullptr},
    {"packed_smp", packed_smp, true, nullptr},
    {"packed_extremum", packed_extremum, true, nullptr},
    {"packed_attention", packed_attention, true, nullptr},
    {"packed_linear", packed_linear, true, nullptr},
    {"spmm", spmm, true, nullptr},
    {"fake_quantize", fake_quantize, false, nullptr},
    {"fake_quantize_backward", fake_quantize_backward, false, nullptr},
    {"observed_quantize", observed_quantize, true, nullptr},
    {"observed_quantize_backward", observed_quantize_backward, true, nullptr},
};
constexpr const char* kWho = "torch_geometric_qlr";
constexpr size_t kOps = std::size(ops);

int32_t threads() {
  uint32_t count = 1;
  torch_did(torch().torch_get_num_threads(&count));
  return static_cast<int32_t>(count);
}

// The results, or why there are none. The stack stays as it is.
Refusal attempt(const Op& op, const Value* stack, Owned* results) {
  try {
    const int32_t isa = instruction_set(op.no_gradient);
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

void run(const Op& op, Value* stack, uint64_t outputs) {
  Owned results[kMaxResults];
  const Refusal refusal = attempt(op, stack, results);
  if (refusal.status != QLR_OK) return detour(*op.schema, stack, outputs, refusal);
  release(*op.schema, stack);
  for (uint64_t i = 0; i < outputs; ++i) stack[i] = reinterpret_cast<Value>(results[i].release());
}

template <size_t i>
void boxed(Value* stack, uint64_t, uint64_t outputs) {
  run(ops[i], stack, outputs);
}

template <size_t... i>
constexpr std::array<Boxed, kOps> all_boxed(std::index_sequence<i...>) {
  return {boxed<i>...};
}

// Every op has its schema, and every schema its op.
bool join_schemas() {
  size_t joined = 0;
  for (Op& op : ops)
    for (const Schema& schema : schemas())
      if (schema.name == op.name) {
        op.schema = &schema;
        ++joined;
      }
  return joined == kOps && schemas().size() == kOps;
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
  static constexpr auto kernels = all_boxed(std::make_index_sequence<kOps>());
  const Shim& s = torch();
  Library library = nullptr;
  if (s.aoti_torch_library_init_impl("qlr", "CPU", kWho, 0, &library) != 0) return false;
  for (size_t i = 0; i < kOps; ++i)
    if (s.torch_library_impl(library, ops[i].name, kernels[i], kTorchVersion) != 0) return false;
  return true;
}

}  // namespace
}  // namespace qlr

int32_t qlr_bind_torch(const char* path) { return qlr::bind_torch(path) ? 0 : 1; }

int32_t qlr_register_kernels() {
  static const bool registered = qlr::join_schemas() && qlr::implement_all();
  return registered ? 0 : 1;
}

int32_t qlr_register_ops(const char* path) {
  static const bool defined = qlr::bind_torch(path) && qlr::define_all();
  return defined ? qlr_register_kernels() : 1;
}
