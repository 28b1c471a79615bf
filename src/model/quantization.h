// What a checkpoint's quantization_config says of its modules, as compressed-tensors writes it (docs/formats.md).
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "tensor/weight.h"

namespace fathom::model {

/// A module by its name ("model.layers.0.mlp.down_proj"), or by "re:" and a regular expression that its name must begin
/// with.
class ModulePattern {
 public:
  /// Error: an expression that cannot be read, named.
  static Result<ModulePattern> parse(std::string_view text);
  bool matches(std::string_view module) const;
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::shared_ptr<const void> expression_;
};

/// Modules that are stored alike.
struct QuantizationGroup {
  bool all_linear = false;  // target "Linear"
  std::vector<ModulePattern> targets;
  tensor::WeightFormat format = tensor::WeightFormat::bf16;
  tensor::Activations activations =
      tensor::Activations::kAsTheyAre;  // what the checkpoint asks for (input_activations)
};

struct Quantization {
  std::vector<QuantizationGroup> groups;
  std::vector<ModulePattern> ignore;

  bool empty() const { return groups.empty(); }
  /// The group of a linear module; null: it is stored plain. Targets that name a module go before "Linear".
  const QuantizationGroup* group_of(std::string_view module) const;
};

/// Reads the object of quant_method "compressed-tensors". `plain` is the type of what is not quantized: f16 scales come
/// with f16. `what` names the object in errors. Anything that is not understood (formats, strategies, static
/// activations, sparsity, transforms, a cache scheme, unknown keys) is an error that names it.
Result<Quantization> read_compressed_tensors(const Json& object, tensor::WeightFormat plain, std::string_view what);
/// The object that stands for `format`, for modules that are linear and not in `ignore`.
Json compressed_tensors_json(tensor::WeightFormat format, tensor::Activations activations,
                             const std::vector<std::string>& ignore);

}  // namespace fathom::model
