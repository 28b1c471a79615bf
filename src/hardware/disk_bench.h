// How fast a disk is read past the page cache.
#pragma once
#include <optional>

#include "base/files.h"
#include "hardware/machine.h"

namespace fathom::hardware {

struct DiskBenchOptions {
  Path folder;                   // where a temporary file may be written
  std::optional<Path> existing;  // read this file instead
  Bytes bytes = 256 * kMiB;      // of the temporary file, at most; read at most once
  double write_seconds = 0.8;    // stop writing then and read what is there
  double read_seconds = 0.5;
  bool use_io_uring = true;  // false: pread from several threads
};

/// Sequential direct reads of 1 MiB, 16 in flight, through io_uring, or by 8 threads where that is forbidden; buffered
/// after dropping the cache where the file system knows no direct reads. The temporary file has no name from the moment
/// it exists (O_TMPFILE, or unlinked at once), so that nothing is left behind however the process ends. It holds noise,
/// since some disks store zeros for free. Errors: hardware.disk_* with the cause.
Result<DiskRead> measure_disk_read(const DiskBenchOptions& options);

/// A file of at least `min_bytes` below `folder` that is worth reading (a checkpoint's), looked for in at most a few
/// thousand entries; nullopt when there is none.
std::optional<Path> find_large_file(const Path& folder, Bytes min_bytes);

}  // namespace fathom::hardware
