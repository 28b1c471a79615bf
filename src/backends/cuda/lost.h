// Devices that do not come back: a kernel there never ends. Whoever would free, destroy or wait for something on one
// would wait for ever, so everything of it is left to the end of the process.
#pragma once

namespace fathom::cuda {

void mark_lost(int device);
bool is_lost(int device);

}  // namespace fathom::cuda
