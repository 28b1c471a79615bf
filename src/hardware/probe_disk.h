// Which disk a folder lies on, of what kind, and how much room it has.
#pragma once
#include <string>
#include <vector>

#include "hardware/machine.h"
#include "hardware/probe_files.h"

namespace fathom::hardware {

struct FolderUse {
  std::string use;  // "work", "home", "models"
  Path folder;      // absolute; need not exist
};

/// The folders that matter to this process: the current one, home, and where downloads of models are kept.
std::vector<FolderUse> folders_of_interest();

/// The mount, device, file system and kind of disk below `folder`, by /proc/self/mountinfo and sysfs. Never touches the
/// file system itself, so that a dead network mount cannot hold it up. Space is left at 0.
DiskInfo describe_disk(const SystemFiles& files, const Path& folder);

/// The disks of `folders`, those on one mount together, with space (of the real machine only).
std::vector<DiskInfo> read_disks(const SystemFiles& files, const std::vector<FolderUse>& folders);

}  // namespace fathom::hardware
