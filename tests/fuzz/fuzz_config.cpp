// A config.json that somebody else wrote: read, sized, and cut to fewer layers.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/sizes.h"
#include "model/spec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fathom;
  const auto spec = model::parse_config({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!spec) return static_cast<void>(error_text(spec.error())), 0;
  if (spec->layers > 64) return 0;  // valid, but slow to size thousands of times a second
  if (const auto sized = model::size_model(*spec);
      sized && sized->sizes.parameters_main > sized->sizes.parameters_total)
    __builtin_trap();
  static_cast<void>(model::with_layers(*spec, 1));
  return 0;
}
