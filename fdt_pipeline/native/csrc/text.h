// Text that came from a file, as an error may show it.
#ifndef FDT_TEXT_H_
#define FDT_TEXT_H_

#include <string>

namespace fdt {

// In one line of up to 40 characters: what is not printable ASCII becomes '?'.
inline std::string printable(std::string text) {
  for (char &c : text)
    if (c < ' ' || c > '~') c = '?';
  return text.size() <= 40 ? text : text.substr(0, 40) + "..";
}

}  // namespace fdt

#endif  // FDT_TEXT_H_
