// The copy engine's maps of tensors: the driver's function that writes them, found at run time.
#pragma once
#include <cuda.h>

namespace fathom::cuda {

using EncodeTiled = decltype(&::cuTensorMapEncodeTiled);
/// The driver's; null where it has none.
EncodeTiled encode_tiled();

}  // namespace fathom::cuda
