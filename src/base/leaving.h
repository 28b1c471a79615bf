// How the process ends: usually in order; at once where something it holds would never let go of it.
#pragma once

namespace fathom {

/// From now on the process is to end without freeing anything, by finish().
void leave_at_once();
/// The last call of main: the exit code, or the end of the process where it has to leave at once.
int finish(int code);

}  // namespace fathom
