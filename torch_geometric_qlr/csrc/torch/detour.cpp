#include "detour.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace qlr {
namespace {

// Companions are there in processes that run Python.
std::atomic<bool> have_companions{false};
// How many use_backend are active, in any thread.
std::atomic<int64_t> choices{0};

constexpr int32_t kBest = QLR_BEST;  // what the processor lacks is left out when it is asked for
constexpr int32_t kNobody = -1;

// What this thread tells its companions, and what they told it.
struct Conversation {
  int32_t chosen = kNobody;
  int32_t status = QLR_OK;
  const char* reason = "";
  bool failed = false;
  std::string error;
};
thread_local Conversation conversation;

bool environment_chooses() {
  const char* const name = std::getenv("QLR_BACKEND");
  return name != nullptr && *name != 0;
}

const char* words_for(int32_t status) {
  switch (status) {
    case QLR_BAD_ROWPTR: return "rowptr must ascend from 0 to the number of edges";
    case QLR_BAD_INDEX: return "an index is out of range";
    case QLR_NO_MEMORY: return "out of memory";
    case QLR_UNSUPPORTED: return "there is no kernel for this, and no reference without Python";
    case QLR_NOT_FINITE: return "the value to quantize holds NaN or Inf, which have no code";
    case QLR_BAD_CODE: return "a code is too large";
    case QLR_MISFIT:
      return "the arguments do not fit together; the same call in Python says which of them, and "
             "why";
    default: return "torch could not make or convert a tensor";
  }
}

// Words go to the companion as the numbers of their bytes: torch before 2.14 keeps the memory of each
// text that it is handed.
void spell_words(const Schema& schema, Value* stack) {
  const Shim& s = torch();
  for (const char kind : schema.kinds) {
    Value& value = *stack++;
    if (kind != 's') continue;
    const Text text = reinterpret_cast<Text>(value);
    const char* bytes = nullptr;
    size_t length = 0;
    List list = nullptr;
    s.torch_string_c_str(text, &bytes);
    s.torch_string_length(text, &length);
    s.torch_new_list_reserve_size(length, &list);
    for (size_t i = 0; i < length; ++i)
      s.torch_list_push_back(list, static_cast<unsigned char>(bytes[i]));
    s.torch_delete_string(text);
    value = reinterpret_cast<Value>(list);
  }
}

}  // namespace

int32_t instruction_set(bool no_gradient) {
  if (conversation.chosen != kNobody) return std::exchange(conversation.chosen, kNobody);
  if (!have_companions.load(std::memory_order_relaxed)) return kBest;
  if (choices.load(std::memory_order_relaxed) > 0 || environment_chooses() ||
      (no_gradient && torch().aoti_torch_grad_mode_is_enabled()))
    throw Refusal{QLR_ASK, ""};
  return kBest;
}

void detour(const Schema& schema, Value* stack, uint64_t outputs, const Refusal& refusal) {
  if (!have_companions.load(std::memory_order_relaxed)) {
    release(schema, stack);
    throw std::runtime_error("torch.ops.qlr." + schema.name + ": " + words_for(refusal.status));
  }
  spell_words(schema, stack);
  conversation.status = refusal.status;
  conversation.reason = refusal.reason;
  conversation.failed = false;
  const std::string name = "qlr::" + schema.name + "_in_python";
  const int32_t error = torch().torch_call_dispatcher(name.c_str(), "", stack, kTorchVersion);
  if (error != 0) throw std::runtime_error(name + " could not be called");
  if (!conversation.failed) return;
  for (uint64_t i = 0; i < outputs; ++i) Owned(reinterpret_cast<Handle>(stack[i]));
  throw std::runtime_error(std::exchange(conversation.error, {}));
}

void release(const Schema& schema, Value* stack) {
  const Shim& s = torch();
  for (const char kind : schema.kinds) {
    const Value value = *stack++;
    if (kind == 't') s.aoti_torch_delete_tensor_object(reinterpret_cast<Handle>(value));
    if (kind == 's') s.torch_delete_string(reinterpret_cast<Text>(value));
    if (kind != 'o' || value == 0) continue;
    Value* const box = reinterpret_cast<Value*>(value);
    s.aoti_torch_delete_tensor_object(reinterpret_cast<Handle>(*box));
    if (s.torch_delete_stable_ivalue != nullptr) s.torch_delete_stable_ivalue(box);
    else delete box;
  }
}

}  // namespace qlr

void qlr_expect_companions() { qlr::have_companions = true; }
void qlr_count_choices(int32_t more) { qlr::choices += more; }
void qlr_choose_once(int32_t isa) { qlr::conversation.chosen = isa; }
int32_t qlr_take_refusal() { return std::exchange(qlr::conversation.status, QLR_OK); }
const char* qlr_refusal_reason() { return qlr::conversation.reason; }
void qlr_report_error(const char* words) {
  qlr::conversation.failed = true;
  qlr::conversation.error = words;
}
