#include "shim.h"

#include <mutex>

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace qlr {
namespace {

using Address = void (*)();

#if defined(_WIN32)
void* open_library(const char* path) {
  HMODULE library = path == nullptr ? nullptr : GetModuleHandleA(path);
  return library != nullptr ? library : GetModuleHandleA("torch_cpu.dll");
}
Address find(void* library, const char* name) {
  return library ? reinterpret_cast<Address>(GetProcAddress(static_cast<HMODULE>(library), name))
                 : nullptr;
}
#else
#if defined(__APPLE__)
constexpr const char* kName = "libtorch_cpu.dylib";
#else
constexpr const char* kName = "libtorch_cpu.so";
#endif
// Only what is loaded already: a second copy of torch would know no tensor of the first. Some
// distributions keep it elsewhere than torch's own wheels do.
void* open_library(const char* path) {
  void* library = path == nullptr ? nullptr : dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) library = dlopen(kName, RTLD_LAZY | RTLD_NOLOAD);
  return library != nullptr ? library : RTLD_DEFAULT;
}
Address find(void* library, const char* name) {
  return reinterpret_cast<Address>(dlsym(library, name));
}
#endif

Shim shim;
bool bound = false;

template <typename Function>
bool set(Function& function, void* library, const char* name) {
  function = reinterpret_cast<Function>(find(library, name));
  return function != nullptr;
}

uint64_t bit(int32_t dtype) { return dtype >= 0 && dtype < 64 ? uint64_t{1} << dtype : 0; }

void ask_for_numbers(Shim& s) {
  s.cpu = s.aoti_torch_device_type_cpu();
  s.strided = s.aoti_torch_layout_strided();
  s.boolean = s.aoti_torch_dtype_bool();
  s.uint8 = s.aoti_torch_dtype_uint8();
  s.int8 = s.aoti_torch_dtype_int8();
  s.int16 = s.aoti_torch_dtype_int16();
  s.int32 = s.aoti_torch_dtype_int32();
  s.int64 = s.aoti_torch_dtype_int64();
  s.float16 = s.aoti_torch_dtype_float16();
  s.bfloat16 = s.aoti_torch_dtype_bfloat16();
  s.float32 = s.aoti_torch_dtype_float32();
  s.float64 = s.aoti_torch_dtype_float64();
  s.floats = bit(s.float16) | bit(s.bfloat16) | bit(s.float32) | bit(s.float64);
  s.indices = bit(s.int32) | bit(s.int64);
  s.numbers = s.floats | s.indices | bit(s.uint8) | bit(s.int8) | bit(s.int16);
}

bool find_all(void* library, Shim& found) {
  bool complete = true;
#define QLR_FIND(result, name, arguments) complete &= set(found.name, library, #name);
  QLR_REQUIRED_OF_TORCH(QLR_FIND)
#undef QLR_FIND
#define QLR_FIND(result, name, arguments) set(found.name, library, #name);
  QLR_OPTIONAL_OF_TORCH(QLR_FIND)
#undef QLR_FIND
  return complete;
}

}  // namespace

bool bind_torch(const char* path) {
  static std::mutex once;
  const std::lock_guard<std::mutex> lock(once);
  if (bound) return true;
  void* const library = open_library(path);
  Shim found{};
  if (!find_all(library, found)) return false;
  ask_for_numbers(found);
  shim = found;
  return bound = true;
}

const Shim& torch() { return shim; }

}  // namespace qlr
