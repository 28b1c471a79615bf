#include "backends/backends.h"

#include "backends/cpu/cpu_backend.h"
#include "backends/cuda/cuda_backend.h"
#include "backends/reference/reference_backend.h"
#include "base/strings.h"

namespace fathom::backends {

std::vector<BackendInfo> list_backends() {
  std::string no_cuda = cuda::why_unavailable();
  return {{.name = "cpu", .available = true, .why_not = ""},
          {.name = "reference", .available = true, .why_not = ""},
          {.name = "cuda", .available = no_cuda.empty(), .why_not = std::move(no_cuda)}};
}

Result<std::unique_ptr<tensor::Backend>> make_backend(std::string_view name, const tensor::BackendOptions& options) {
  if (name == "reference") return reference::make_reference_backend(options);
  if (name == "cpu") {
    // Backward of everything but the matrix products is the reference's, on the same memory.
    FATHOM_TRY(auto plain, reference::make_reference_backend(
                               {.threads = 1, .activation_dtype = options.activation_dtype, .isa = ""}));
    return cpu::make_cpu_backend(options, std::move(plain));
  }
  if (name == "cuda") return cuda::make_cuda_backend(options);
  std::vector<std::string> names;
  for (const BackendInfo& info : list_backends()) names.emplace_back(info.name);
  return fail("backends.unknown", {{"name", printable(name)}, {"known", join(names)}});
}

}  // namespace fathom::backends
