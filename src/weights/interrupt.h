// Ctrl-C and its kin as a question that long work can ask, so that it ends by its own error and cleans up.
#pragma once

namespace fathom::weights {

/// While one lives, SIGINT, SIGTERM and SIGHUP only set a flag; a second signal ends the process as usual. One at a
/// time, made by the program's own main path (a verb), never by library code.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  static bool requested();
};

}  // namespace fathom::weights
