#include "schema.h"

#include <stdexcept>
#include <string_view>

namespace qlr {
namespace {

constexpr const char kText[] =
#include "../../ops/schemas.inc"
    ;

char kind_of(std::string_view argument) {
  const std::string_view type = argument.substr(0, argument.find(' '));
  if (type == "Tensor") return 't';
  if (type == "Tensor?") return 'o';
  if (type == "int" || type == "SymInt") return 'i';
  if (type == "float") return 'f';
  if (type == "bool") return 'b';
  if (type == "str") return 's';
  throw std::logic_error("a schema has an argument of a type that nobody reads");
}

Schema parse(std::string_view line) {
  const size_t open = line.find('('), close = line.find(") ->");
  Schema schema{std::string(line), std::string(line.substr(0, open)), ""};
  std::string_view arguments = line.substr(open + 1, close - open - 1);
  while (!arguments.empty()) {
    schema.kinds += kind_of(arguments);
    const size_t comma = arguments.find(", ");
    arguments = comma == std::string_view::npos ? "" : arguments.substr(comma + 2);
  }
  return schema;
}

std::vector<Schema> parse_all() {
  std::vector<Schema> all;
  std::string_view rest = kText;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    if (end > 0) all.push_back(parse(rest.substr(0, end)));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return all;
}

}  // namespace

const std::vector<Schema>& schemas() {
  static const std::vector<Schema> all = parse_all();
  return all;
}

const Schema* find_schema(std::string_view name) {
  for (const Schema& schema : schemas())
    if (schema.name == name) return &schema;
  return nullptr;
}

const char* schemas_text() { return kText; }

}  // namespace qlr
