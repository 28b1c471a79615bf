#include "backends/cuda/codes_wide.cuh"

namespace fathom::cuda {

void launch_gated(Context& context, const CodesView& view) { launch_codes<CodesMode::kGated>(context, view); }

}  // namespace fathom::cuda
