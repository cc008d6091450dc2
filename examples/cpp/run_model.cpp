// Runs a model that qlr.export wrote to a .pt2 file, without Python.
//
//   run_model libqlr_cpu.so model.pt2 inputs.pt
//
// inputs.pt is what torch.save writes of a list of tensors: the inputs, and the answer expected last.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

// The kernels become operations of torch. The library is of plain C: no header is needed.
static bool add_kernels(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) return std::cerr << dlerror() << '\n', false;
  using Register = int32_t (*)(const char* libtorch_cpu);
  auto add = reinterpret_cast<Register>(dlsym(library, "qlr_register_ops"));
  return add != nullptr && add(nullptr) == 0;
}

static std::vector<at::Tensor> read_tensors(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::istreambuf_iterator<char> begin(file), end;
  const std::vector<char> bytes(begin, end);
  const c10::IValue list = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& value : list.toListRef()) tensors.push_back(value.toTensor());
  return tensors;
}

int main(int count, char** arguments) {
  if (count != 4) return std::cerr << "run_model libqlr_cpu.so model.pt2 inputs.pt\n", 2;
  if (!add_kernels(arguments[1])) return std::cerr << "the kernels cannot be registered\n", 1;
  torch::inductor::AOTIModelPackageLoader model(arguments[2]);
  std::vector<at::Tensor> inputs = read_tensors(arguments[3]);
  const at::Tensor expected = inputs.back();
  inputs.pop_back();
  const at::Tensor out = model.run(inputs)[0];
  std::cout << "shape " << out.sizes() << ", equal to the model's: " << std::boolalpha
            << at::equal(out, expected) << '\n';
  return at::equal(out, expected) ? 0 : 1;
}
