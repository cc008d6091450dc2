// What torch is told about the ops, read from ops/schemas.inc, as Python reads it.
#pragma once

#include <string>
#include <vector>

namespace qlr {

struct Schema {
  std::string text;  // "pack(Tensor codes, int bits) -> Tensor"
  std::string name;  // "pack"
  // A letter per argument: t tensor, o optional tensor, i integer, f number, b flag, s word.
  std::string kinds;  // "ti"
};

const std::vector<Schema>& schemas();

}  // namespace qlr
