// A hidden folder in which something is made before it gets its name.
#pragma once
#include "base/files.h"
#include "weights/safetensors.h"

namespace fathom::weights {

/// Beside `target`, on the same file system. Locked while it lives, so that what a killed process left is told from
/// work in progress.
class StagingFolder {
 public:
  /// Removes abandoned ones of the same target first.
  static Result<StagingFolder> create(const Path& target);
  StagingFolder(StagingFolder&& other) noexcept;
  StagingFolder& operator=(StagingFolder&& other) noexcept;
  ~StagingFolder();

  const Path& path() const { return path_; }
  /// Syncs the folder and gives it the target's name. `replace`: an existing target goes; without it one that has
  /// appeared is an error.
  Status publish(bool replace);

 private:
  StagingFolder() = default;
  void remove();
  Path target_, path_;
  Descriptor lock_;
};

/// Bytes that may still be written below `folder`.
Result<Bytes> free_bytes(const Path& folder);

}  // namespace fathom::weights
