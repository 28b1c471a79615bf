// Bytes as a safetensors header, an index of shards and a whole file; whatever opens is loaded, copied and mapped.
#include <cstddef>
#include <cstdint>

#include "../weights/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fathom::weights::test::fuzz_one({reinterpret_cast<const char*>(data), size});
  return 0;
}
