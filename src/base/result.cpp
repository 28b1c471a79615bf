#include "base/result.h"

#include <cstdio>
#include <cstdlib>

#include "base/i18n.h"

namespace fathom {

std::string error_text(const Error& error) {
  TextArgs args;
  args.reserve(error.args.size());
  for (const auto& [name, value] : error.args) args.emplace_back(name, value);
  return tr(error.key, args);
}

void check_failed(const char* condition, const char* file, int line, std::string_view note) {
  std::fprintf(stderr, "fathom: internal error: %s does not hold at %s:%d %.*s\n", condition, file, line,
               static_cast<int>(note.size()), note.data());
  std::abort();
}

}  // namespace fathom
