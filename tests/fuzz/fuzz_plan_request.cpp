// Lines of a batch: whatever they hold, the answer is one line of JSON, and nothing breaks or takes long.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "plan/batch.h"
#include "plan/json_line.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::string answer;
  fathom::plan::answer_line(text, answer);
  std::size_t bad = 0;
  if (answer.find('\n') != std::string::npos || !fathom::plan::JsonObject::parse(answer, bad)) __builtin_trap();
  return 0;
}
