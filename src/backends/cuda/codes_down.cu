#include "backends/cuda/codes_wide.cuh"

namespace fathom::cuda {

void launch_down(Context& context, const CodesView& view) { launch_codes<CodesMode::kDown>(context, view); }

}  // namespace fathom::cuda
