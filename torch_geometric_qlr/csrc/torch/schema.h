// What torch is told about the ops, read from ops/schemas.inc, as Python reads it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qlr {

struct Schema {
  std::string text;  // "pack(Tensor codes, int bits) -> Tensor"
  std::string name;  // "pack"
  // A letter per argument: t tensor, o optional tensor, i integer, f number, b flag, s word.
  std::string kinds;  // "ti"
};

const std::vector<Schema>& schemas();
const Schema* find_schema(std::string_view name);  // null if there is none
const char* schemas_text();                        // all of them, as they stand in the file

}  // namespace qlr
