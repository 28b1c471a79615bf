#include "weights/staging_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <random>

#include "base/units.h"

namespace fathom::weights {
namespace {

std::string prefix_of(const Path& target) { return fmt::format(".{}.partial-", target.filename().string()); }

Descriptor lock_folder(const Path& folder) {
  Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) return {};
  return fd;
}

// What killed processes left: folders of this target that nobody holds.
void remove_abandoned(const Path& target) {
  const std::string prefix = prefix_of(target);
  std::error_code error;
  for (std::filesystem::directory_iterator it(target.parent_path(), error), end; !error && it != end;
       it.increment(error)) {
    if (!it->path().filename().string().starts_with(prefix)) continue;
    std::error_code ignored;
    if (const Descriptor lock = lock_folder(it->path())) std::filesystem::remove_all(it->path(), ignored);
  }
}

Status cannot_write(const Path& path) {
  return fail_environment("base.cannot_write", {{"path", path.string()}, {"reason", errno_text(errno)}});
}

Status sync_folder(const Path& folder) {
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) != 0) return cannot_write(folder);
  return {};
}

}  // namespace

Result<StagingFolder> StagingFolder::create(const Path& target) {
  StagingFolder folder;
  folder.target_ = target;
  remove_abandoned(target);
  std::random_device random;
  for (int attempt = 0; attempt < 16; ++attempt) {
    const Path path =
        target.parent_path() / (prefix_of(target) + std::to_string(::getpid()) + "-" + std::to_string(random()));
    if (::mkdir(path.c_str(), 0777) != 0) {
      if (errno == EEXIST) continue;
      return tl::unexpected(cannot_write(target).error());
    }
    folder.path_ = path;
    folder.lock_ = lock_folder(path);
    return folder;
  }
  errno = EEXIST;
  return tl::unexpected(cannot_write(target).error());
}

StagingFolder::StagingFolder(StagingFolder&& other) noexcept
    : target_(std::move(other.target_)), path_(std::exchange(other.path_, Path())), lock_(std::move(other.lock_)) {}

StagingFolder& StagingFolder::operator=(StagingFolder&& other) noexcept {
  std::swap(target_, other.target_);
  std::swap(path_, other.path_);
  std::swap(lock_, other.lock_);
  return *this;
}

StagingFolder::~StagingFolder() { remove(); }

void StagingFolder::remove() {
  if (path_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
  path_.clear();
}

Status StagingFolder::publish(bool replace) {
  FATHOM_TRY_VOID(sync_folder(path_));
  if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_NOREPLACE) == 0) {
    path_.clear();
  } else if (errno == EEXIST && replace) {
    // Both names change hands in one step; what then has the hidden name is the old folder, removed by remove().
    if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0)
      return cannot_write(target_);
    remove();
  } else if (errno == EINVAL || errno == ENOSYS) {  // a file system without these flags
    std::error_code ignored;
    if (replace) std::filesystem::remove_all(target_, ignored);
    if (::rename(path_.c_str(), target_.c_str()) != 0) return cannot_write(target_);
    path_.clear();
  } else {
    return cannot_write(target_);
  }
  return sync_folder(target_.parent_path());
}

Result<Bytes> free_bytes(const Path& folder) {
  struct statvfs info = {};
  if (::statvfs(folder.c_str(), &info) != 0)
    return fail_environment("base.cannot_write", {{"path", folder.string()}, {"reason", errno_text(errno)}});
  return static_cast<Bytes>(info.f_bavail) * static_cast<Bytes>(info.f_frsize);
}

}  // namespace fathom::weights
