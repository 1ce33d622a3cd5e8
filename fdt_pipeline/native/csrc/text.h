// Text that came from a file or an argument: as an error may show it, and the numbers in it.
#ifndef FDT_TEXT_H_
#define FDT_TEXT_H_

#include <locale.h>
#include <stdlib.h>

#include <string>

namespace fdt {

// In one line of up to 40 characters: what is not printable ASCII becomes '?'.
inline std::string printable(std::string text) {
  for (char &c : text)
    if (c < ' ' || c > '~') c = '?';
  return text.size() <= 40 ? text : text.substr(0, 40) + "..";
}

// strtod with a decimal point, whatever the process's locale has: with a comma, "6, 5" begins with "6,".
// (std::from_chars for doubles needs a libstdc++ of GCC 11 where this runs, and nothing else here does.)
inline double number_at(const char *begin, char **end) {
  static const locale_t c = newlocale(LC_ALL_MASK, "C", nullptr);
  return strtod_l(begin, end, c);
}

}  // namespace fdt

#endif  // FDT_TEXT_H_
