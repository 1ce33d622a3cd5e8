#include "json.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "text.h"

namespace fdt {

const Json &Json::at(const std::string &name) const {
  const auto found = fields.find(name);
  if (kind != Kind::kObject || found == fields.end()) throw std::invalid_argument("no field \"" + name + "\"");
  return found->second;
}

int64_t Json::integer(int64_t least) const {
  if (kind != Kind::kNumber || number != std::floor(number) || number < static_cast<double>(least) || number > 1e15)
    throw std::invalid_argument("expected a whole number of " + std::to_string(least) + " or more");
  return static_cast<int64_t>(number);
}

const std::string &Json::string() const {
  if (kind != Kind::kString) throw std::invalid_argument("expected a string");
  return text;
}

const std::vector<Json> &Json::array() const {
  if (kind != Kind::kArray) throw std::invalid_argument("expected a list");
  return items;
}

namespace {

constexpr int kDeepest = 32;

class Parser {
 public:
  explicit Parser(const std::string &text) : text_(text) {}

  Json whole() {
    Json value = parse(0);
    skip_blanks();
    if (at_ != text_.size()) fail("the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char *expected) const {
    throw std::invalid_argument(std::string("expected ") + expected + " at byte " + std::to_string(at_));
  }

  void skip_blanks() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_])) at_++;
  }

  bool take(char c) {
    skip_blanks();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    at_++;
    return true;
  }

  bool take_word(const char *word) {
    if (text_.compare(at_, std::strlen(word), word) != 0) return false;
    at_ += std::strlen(word);
    return true;
  }

  Json parse(int depth) {
    if (depth > kDeepest) fail("no more nesting");
    Json value;
    if (take('{')) return object(depth);
    if (take('[')) return array(depth);
    if (take('"')) {
      value.kind = Json::Kind::kString;
      value.text = string();
    } else if (take_word("null")) {
      value.kind = Json::Kind::kNull;
    } else if (take_word("true") || take_word("false")) {
      value.kind = Json::Kind::kBool;
    } else {
      const char *begin = text_.c_str() + at_;
      char *end = nullptr;
      value.kind = Json::Kind::kNumber;
      value.number = number_at(begin, &end);
      if (end == begin) fail("a value");
      at_ += static_cast<size_t>(end - begin);
    }
    return value;
  }

  Json object(int depth) {
    Json value;
    value.kind = Json::Kind::kObject;
    if (take('}')) return value;
    do {
      if (!take('"')) fail("a field's name");
      const std::string name = string();
      if (!take(':')) fail("':'");
      value.fields[name] = parse(depth + 1);
    } while (take(','));
    if (!take('}')) fail("',' or '}'");
    return value;
  }

  Json array(int depth) {
    Json value;
    value.kind = Json::Kind::kArray;
    if (take(']')) return value;
    do value.items.push_back(parse(depth + 1));
    while (take(','));
    if (!take(']')) fail("',' or ']'");
    return value;
  }

  // After the opening quote. Escapes of characters beyond ASCII become '?': names of classes are not used here.
  std::string string() {
    std::string result;
    while (at_ < text_.size() && text_[at_] != '"') {
      char c = text_[at_++];
      if (c == '\\') {
        if (at_ >= text_.size()) break;
        c = text_[at_++];
        if (c == 'u') {
          at_ += 4;
          c = '?';
        } else if (std::strchr("bfnrt", c)) {
          c = ' ';
        }
      }
      result += c;
    }
    if (at_ >= text_.size()) fail("'\"'");
    at_++;
    return result;
  }

  const std::string &text_;
  size_t at_ = 0;
};

}  // namespace

Json parse_json(const std::string &text) { return Parser(text).whole(); }

}  // namespace fdt
