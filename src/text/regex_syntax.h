// Regular expressions of tokenizer files are written for Oniguruma (Ruby's syntax); PCRE2 reads another dialect.
#pragma once
#include <string>
#include <string_view>

#include "base/result.h"

namespace fathom::text {

/// The same expression for PCRE2 (with UTF, UCP and MULTILINE): shorthand classes with Unicode's meaning, `(?m)` as
/// dot-all,
/// `{n,m}+` as a repeated repeat, nested and intersected classes spelled out, long property names shortened.
/// Whatever has no known equivalent is an error that names it and its place.
Result<std::string> to_pcre_syntax(std::string_view pattern);

}  // namespace fathom::text
