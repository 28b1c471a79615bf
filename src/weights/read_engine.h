// Reads many ranges of many files, several in flight on every thread: io_uring where the kernel lets us, else pread;
// past the page cache (O_DIRECT) when a file is not in it, through it when it is.
#pragma once
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "weights/workers.h"

namespace fathom::weights {

enum class IoMode { kAuto, kPread };
enum class DirectMode { kAuto, kNever, kAlways };

struct ReadOptions {
  IoMode io = IoMode::kAuto;
  DirectMode direct = DirectMode::kAuto;
  int threads = 0;  // 0: as many as this process may use
  ProgressFn progress;
};

struct ReadRange {
  Bytes offset = 0, bytes = 0;
};

/// One unit of work: a range of file `file`, and perhaps a second one of `scales_file` that is needed with it.
struct ReadTask {
  std::uint32_t file = 0, scales_file = 0;
  ReadRange data, scales;
  std::byte* into = nullptr;  // where the data may be put as it is; null: it goes to `consume`
};

/// How it was done, for reports.
struct ReadStats {
  Bytes bytes = 0;
  bool uring = false;  // false: pread
  std::size_t direct_files = 0, files = 0;
  int threads = 0;
};

/// Performs all tasks, in their order as far as threads allow. `consume` is called once a task when its bytes are
/// there, from several threads; the spans (that of data at task.into when that was given) are valid until it returns.
/// Both are aligned like the file's offsets within 4096 bytes. Errors: the first that reading or consuming came to;
/// weights.truncated when a file ends early.
Result<ReadStats> read_all(std::span<const Path> files, std::span<const ReadTask> tasks, const ReadOptions& options,
                           const std::function<Status(std::size_t task, std::span<const std::byte> data,
                                                      std::span<const std::byte> scales)>& consume);

}  // namespace fathom::weights
