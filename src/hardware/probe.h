// Looks at the machine that we run on, and measures it. Needs no root, no GPU and no tools; works inside containers.
// What cannot be read is left unknown; nothing here fails, and no device or file system that hangs can hold it up:
// whatever may block runs under a time limit.
#pragma once
#include <functional>
#include <string_view>

#include "base/files.h"
#include "hardware/machine.h"

namespace fathom::hardware {

/// How long to measure memory and arithmetic: nothing; a few milliseconds on tiny buffers (for tests: the figures mean
/// little); under 0.7 s; about 2 s; about 10 s.
enum class Effort { kNone, kTiny, kQuick, kDefault, kThorough };
std::string_view effort_name(Effort effort);

struct ProbeOptions {
  Path root = "/";  // where proc/ and sys/ are: another folder in tests, and then nothing is executed or measured
  Effort effort = Effort::kDefault;
  bool disks = true;          // find the disks at all
  bool measure_disks = true;  // write (at most 256 MiB, never left behind) and read; only with effort above kNone
  bool gpus = true;
  std::function<void(std::string_view stage)> on_stage;  // called before each stage with a key of the text catalog
};

/// Everything that can be known here. Takes about what `effort` says plus a second or so for disks.
Machine probe(const ProbeOptions& options = {});

}  // namespace fathom::hardware
