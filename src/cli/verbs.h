// The verbs of the command line: one file each, listed in verbs.cpp.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fathom::cli {

class FlagSet;  // flags.h

/// Exit codes: 0 done; 1 the answer is no (verify failed, bench off); 2 the input or the machine stopped us.
inline constexpr int kExitOk = 0, kExitNo = 1, kExitError = 2;

/// What every verb shares. --json: one JSON document on standard output, nothing else there.
struct Common {
  bool json = false;
};

/// One verb. `setup` adds its flags to `verb` and keeps them in static storage of its own file; `run` does it and
/// answers the exit code. A failure is an Error, printed by run() as one sentence on standard error with exit code 2.
struct Verb {
  std::string_view name;
  void (*setup)(FlagSet& verb);
  Result<int> (*run)(const Common& common);
};

std::span<const Verb> verbs();

/// All that standard input has, to its end.
std::string read_standard_input();

/// Parses and runs. Texts for `--help` come from the catalog: cli.<verb>.about, cli.<verb>.examples, cli.<verb>.<flag>.
int run(int argc, char** argv);

}  // namespace fathom::cli
