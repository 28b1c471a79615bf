// The one place that knows every backend and hands them out by name.
#pragma once
#include <memory>
#include <string_view>
#include <vector>

#include "tensor/backend.h"

namespace fathom::backends {

struct BackendInfo {
  std::string_view name;
  bool available = false;
  std::string why_not;
};
/// "cpu", "reference", "cuda": in the order in which a person would want them, each saying why it cannot be had here.
std::vector<BackendInfo> list_backends();
/// Unknown names and backends that this build or machine lacks are errors that say what there is.
Result<std::unique_ptr<tensor::Backend>> make_backend(std::string_view name,
                                                      const tensor::BackendOptions& options = {});

}  // namespace fathom::backends
