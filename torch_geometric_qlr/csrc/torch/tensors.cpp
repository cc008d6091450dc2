#include "tensors.h"

#include <algorithm>
#include <vector>

namespace qlr {
namespace {

constexpr int32_t kNoIndex = -1;  // there is one CPU

int64_t item_size(int32_t dtype) {
  const Shim& s = torch();
  if (dtype == s.uint8 || dtype == s.int8 || dtype == s.boolean) return 1;
  return dtype == s.int64 ? 8 : 4;  // of the types that results have
}

// By its address alone: what else torch hands to a deleter has changed in the past.
void free_blob(void* data, void*) { Buffer::give_back(data); }

}  // namespace

View::View(Handle tensor) {
  const Shim& s = torch();
  bool defined = false;
  int32_t device = -1, layout = -1;
  torch_did(s.aoti_torch_is_defined(tensor, &defined));
  require(defined);
  torch_did(s.aoti_torch_get_device_type(tensor, &device));
  torch_did(s.aoti_torch_get_layout(tensor, &layout));
  require(device == s.cpu && layout == s.strided);
  torch_did(s.aoti_torch_get_dtype(tensor, &dtype));
  torch_did(s.aoti_torch_get_dim(tensor, &dim));
  torch_did(s.aoti_torch_get_numel(tensor, &numel));
  int64_t* found = nullptr;
  torch_did(s.aoti_torch_get_sizes(tensor, &found));
  sizes = found;
  handle = tensor;
}

bool View::has_shape_of(const View& other) const {
  return dim == other.dim && std::equal(sizes, sizes + dim, other.sizes);
}

Owned empty(int64_t dim, const int64_t* sizes, int32_t dtype) {
  std::vector<int64_t> strides(static_cast<size_t>(dim));
  int64_t numel = 1, step = 1;
  for (int64_t d = dim - 1; d >= 0; --d) {
    strides[d] = step;
    step = bytes_of(step, std::max<int64_t>(sizes[d], 1));
    numel = bytes_of(numel, sizes[d]);
  }
  const Shim& s = torch();
  const int64_t bytes = bytes_of(numel, item_size(dtype));
  Handle made = nullptr;
  if (s.torch_from_blob != nullptr && Buffer::is_mapped(bytes)) {
    Buffer memory(bytes);
    void* const data = memory.data();
    torch_did(s.torch_from_blob(data, dim, sizes, strides.data(), 0, dtype, s.cpu, kNoIndex, &made,
                                s.strided, nullptr, 0, free_blob, nullptr));
    memory.release();
  } else {
    torch_did(
        s.aoti_torch_empty_strided(dim, sizes, strides.data(), dtype, s.cpu, kNoIndex, &made));
  }
  return Owned(made);
}

Owned empty_matrix(int64_t rows, int64_t cols, int32_t dtype) {
  const int64_t sizes[] = {rows, cols};
  return empty(2, sizes, dtype);
}

void* address(Handle tensor) {
  void* data = nullptr;
  torch_did(torch().aoti_torch_get_data_ptr(tensor, &data));
  return data;
}

}  // namespace qlr
