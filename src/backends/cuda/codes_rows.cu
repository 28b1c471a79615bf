#include "backends/cuda/codes_wide.cuh"

namespace fathom::cuda {

void launch_rows(Context& context, const CodesView& view) { launch_codes<CodesMode::kRows>(context, view); }

}  // namespace fathom::cuda
