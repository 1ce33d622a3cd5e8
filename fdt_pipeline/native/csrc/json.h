// Just enough JSON to read a manifest.
#ifndef FDT_JSON_H_
#define FDT_JSON_H_

#include <map>
#include <string>
#include <vector>

namespace fdt {

struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> fields;

  // std::invalid_argument for a missing field or another kind of value than asked for.
  const Json &at(const std::string &name) const;
  int64_t integer(int64_t least) const;
  const std::string &string() const;
  const std::vector<Json> &array() const;
};

// std::invalid_argument, with the place, if it is not one JSON value.
Json parse_json(const std::string &text);

}  // namespace fdt

#endif  // FDT_JSON_H_
