// A tokenizer.json, a zero byte, a text: loaded, encoded, decoded at once and as a stream.
#include <cstddef>
#include <cstdint>

#include "../text/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fathom::text::test::fuzz_tokenizer({reinterpret_cast<const char*>(data), size});
  return 0;
}
