// The part of libtorch's C interface that the ops use, found by name when the library is bound. So the
// build needs neither torch nor its headers, and one binary serves every torch that has the functions:
// 2.10 and later have all that are required.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qlr {

// What torch calls StableIValue: an argument or a result of an op. A number or a truth value itself, a
// handle of a tensor or a text that belongs to whoever is handed it, or for what is optional the address
// of one of these, null for none.
using Value = uint64_t;
using Handle = struct TensorOpaque*;
using Text = struct StringOpaque*;
using List = struct ListOpaque*;
using Library = struct LibraryOpaque*;
using Boxed = void (*)(Value* stack, uint64_t inputs, uint64_t outputs);
using Deleter = void (*)(void* data, void* context);

// clang-format off
#define QLR_REQUIRED_OF_TORCH(X)                                                                  \
  X(int32_t, aoti_torch_device_type_cpu, ())                                                      \
  X(int32_t, aoti_torch_layout_strided, ())                                                       \
  X(int32_t, aoti_torch_dtype_bool, ())                                                           \
  X(int32_t, aoti_torch_dtype_uint8, ())                                                          \
  X(int32_t, aoti_torch_dtype_int8, ())                                                           \
  X(int32_t, aoti_torch_dtype_int16, ())                                                          \
  X(int32_t, aoti_torch_dtype_int32, ())                                                          \
  X(int32_t, aoti_torch_dtype_int64, ())                                                          \
  X(int32_t, aoti_torch_dtype_float16, ())                                                        \
  X(int32_t, aoti_torch_dtype_bfloat16, ())                                                       \
  X(int32_t, aoti_torch_dtype_float32, ())                                                        \
  X(int32_t, aoti_torch_dtype_float64, ())                                                        \
  X(int32_t, aoti_torch_is_defined, (Handle, bool*))                                              \
  X(int32_t, aoti_torch_get_device_type, (Handle, int32_t*))                                      \
  X(int32_t, aoti_torch_get_layout, (Handle, int32_t*))                                           \
  X(int32_t, aoti_torch_get_dtype, (Handle, int32_t*))                                            \
  X(int32_t, aoti_torch_get_dim, (Handle, int64_t*))                                              \
  X(int32_t, aoti_torch_get_numel, (Handle, int64_t*))                                            \
  X(int32_t, aoti_torch_get_sizes, (Handle, int64_t**))                                           \
  X(int32_t, aoti_torch_get_data_ptr, (Handle, void**))                                           \
  X(int32_t, aoti_torch_is_contiguous, (Handle, bool*))                                           \
  X(int32_t, aoti_torch_empty_strided, (int64_t dim, const int64_t* sizes,                        \
                                        const int64_t* strides, int32_t dtype, int32_t device,    \
                                        int32_t index, Handle*))                                  \
  X(int32_t, aoti_torch_copy_, (Handle to, Handle from, int32_t non_blocking))                    \
  X(int32_t, aoti_torch_delete_tensor_object, (Handle))                                           \
  X(bool, aoti_torch_grad_mode_is_enabled, ())                                                    \
  X(int32_t, aoti_torch_library_init_def, (const char* space, const char* file, uint32_t line,    \
                                           Library*))                                             \
  X(int32_t, aoti_torch_library_init_impl, (const char* space, const char* key,                   \
                                            const char* file, uint32_t line, Library*))           \
  X(int32_t, aoti_torch_library_def, (Library, const char* schema))                               \
  X(int32_t, torch_library_impl, (Library, const char* name, Boxed, uint64_t version))            \
  X(int32_t, torch_call_dispatcher, (const char* name, const char* overload, Value* stack,        \
                                     uint64_t version))                                           \
  X(int32_t, torch_string_length, (Text, size_t*))                                                \
  X(int32_t, torch_string_c_str, (Text, const char**))                                            \
  X(int32_t, torch_delete_string, (Text))                                                         \
  X(int32_t, torch_new_list_reserve_size, (size_t, List*))                                        \
  X(int32_t, torch_list_push_back, (List, Value))                                                 \
  X(int32_t, torch_get_num_threads, (uint32_t*))

// Null where torch is older than the one that is named.
#define QLR_OPTIONAL_OF_TORCH(X)                                                                  \
  X(int32_t, torch_from_blob, (void* data, int64_t dim, const int64_t* sizes,                     \
                               const int64_t* strides, int64_t offset, int32_t dtype,             \
                               int32_t device, int32_t index, Handle*, int32_t layout,            \
                               const uint8_t* metadata, int64_t metadata_size, Deleter,           \
                               void* context)) /* 2.11 */                                         \
  X(int32_t, torch_tag_pt2_compliant_tag, ()) /* 2.12 */                                          \
  X(int32_t, torch_library_def_with_tags, (Library, const char* schema, const int32_t* tags,      \
                                           int32_t count)) /* 2.12 */                             \
  X(int32_t, torch_delete_stable_ivalue, (Value*)) /* 2.13; before it operator delete does it */
// clang-format on

struct Shim {
#define QLR_MEMBER(result, name, arguments) result(*name) arguments = nullptr;
  QLR_REQUIRED_OF_TORCH(QLR_MEMBER)
  QLR_OPTIONAL_OF_TORCH(QLR_MEMBER)
#undef QLR_MEMBER

  // What the numbers of torch's enumerations are is asked once.
  int32_t cpu, strided;
  int32_t boolean, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64;
  // Sets of types, one bit each.
  uint64_t floats, numbers, indices;
};

// The values on the stack have the form that they had in this version of torch: 2.10.
constexpr uint64_t kTorchVersion = (uint64_t{2} << 56) | (uint64_t{10} << 48);

// Finds the functions in what the process has loaded: the library at `path`, or (null) wherever it is.
// False if one that is required is missing. The first success counts.
bool bind_torch(const char* path);
const Shim& torch();

}  // namespace qlr
