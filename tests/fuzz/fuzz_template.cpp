// A chat template, a zero byte, its context as JSON: parsed and rendered.
#include <cstddef>
#include <cstdint>

#include "../text/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fathom::text::test::fuzz_template({reinterpret_cast<const char*>(data), size});
  return 0;
}
