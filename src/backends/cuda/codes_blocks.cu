#include "backends/cuda/codes_wide.cuh"

namespace fathom::cuda {

void launch_blocks(Context& context, const CodesView& view) { launch_codes<CodesMode::kBlocks>(context, view); }

}  // namespace fathom::cuda
