// Tensors of torch as the ops see them: those that they are called with, and those that they make.
#pragma once

#include <utility>

#include "memory.h"
#include "refusal.h"
#include "shim.h"

namespace qlr {

// A dense tensor on the CPU that somebody else owns, or nothing where it was left out.
struct View {
  Handle handle = nullptr;
  int32_t dtype = -1;
  int64_t dim = 0, numel = 0;
  const int64_t* sizes = nullptr;

  View() = default;
  explicit View(Handle tensor);
  explicit operator bool() const { return handle != nullptr; }
  bool is_of(uint64_t dtypes) const { return dtype >= 0 && dtype < 64 && (dtypes >> dtype & 1); }
  bool is_matrix(int64_t rows, int64_t cols) const {
    return dim == 2 && sizes[0] == rows && sizes[1] == cols;
  }
  bool has_shape_of(const View& other) const;
};

// A tensor that is ours.
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  ~Owned() {
    if (handle_ != nullptr) torch().aoti_torch_delete_tensor_object(handle_);
  }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Handle get() const { return handle_; }
  Handle release() { return std::exchange(handle_, nullptr); }

 private:
  Handle handle_ = nullptr;
};

// Contiguous and uninitialized.
Owned empty(int64_t dim, const int64_t* sizes, int32_t dtype);
Owned empty_matrix(int64_t rows, int64_t cols, int32_t dtype);
void* address(Handle tensor);

// Throws where torch reports an error; what it was is in torch's log.
inline void torch_did(int32_t error) {
  if (error != 0) throw Refusal{QLR_FAILED, "torch could not make or convert a tensor"};
}

}  // namespace qlr
