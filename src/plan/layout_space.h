// Which layouts a request allows: the wishes it holds, everything else enumerated.
#pragma once
#include <vector>

#include "plan/request.h"

namespace fathom::plan {

/// All layouts that agree with the request's wishes, the product rule and the model's divisibility; never empty.
/// Errors: wishes that contradict each other, say by which rule; a model that cannot be split as wished.
/// `offload` allows offloading where the request left it open (for when nothing fits without).
Result<std::vector<Layout>> layout_space(const PlanRequest& request, bool offload = false);

}  // namespace fathom::plan
