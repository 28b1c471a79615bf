// Many requests, one a line, answered in order.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "base/files.h"

namespace fathom::plan {

/// The answer to one line: JSON of the contract, or {"id", "error"}. Appended to `out` without a newline. Thread-safe.
void answer_line(std::string_view line, std::string& out);

struct BatchCount {
  std::uint64_t answered = 0;
};
/// Reads `path` ("-": standard input) to its end and hands finished answers to `write` in order, whole lines at a time.
/// Errors only when the input cannot be read. threads 0: as many as this process may use.
Result<BatchCount> run_batch(const Path& path, int threads, const std::function<Status(std::string_view)>& write);

}  // namespace fathom::plan
