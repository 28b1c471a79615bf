#include "model/sizes.h"

#include "model/architecture.h"

namespace fathom::model {

Result<SizedModel> size_model(const ModelSpec& spec) {
  FATHOM_TRY(const auto architecture, make_architecture(spec));
  return SizedModel{model_sizes(architecture->weights(), spec.routing.top_k), architecture->kv_figures()};
}

}  // namespace fathom::model
