#include "hardware/probe_disk.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <system_error>

#include "base/strings.h"
#include "hardware/probe_process.h"

namespace fathom::hardware {
namespace {

constexpr double kSpaceSeconds = 2.0;  // longer than any live file system needs to tell its size

struct Mount {
  std::string device_number, point, filesystem, source;
};

// mountinfo writes blanks, tabs, newlines and backslashes as \040 and the like.
std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto octal = [&](std::size_t k) { return k < text.size() && text[k] >= '0' && text[k] <= '7'; };
    if (text[i] == '\\' && octal(i + 1) && octal(i + 2) && octal(i + 3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool is_below(std::string_view folder, std::string_view point) {
  if (point == "/") return folder.starts_with('/');
  return folder.starts_with(point) && (folder.size() == point.size() || folder[point.size()] == '/');
}

// The mount that `folder` is on: the longest mount point above it; of equals the last, which covers the others.
Mount find_mount(const SystemFiles& files, const std::string& folder) {
  Mount best;
  const auto text = files.text("proc/self/mountinfo");
  if (!text) return best;
  for (const std::string_view line : lines_of(*text)) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    const auto left = split(line.substr(0, dash), ' '), right = split(line.substr(dash + 3), ' ');
    if (left.size() < 5 || right.size() < 2) continue;
    const std::string point = unescape(left[4]);
    if (is_below(folder, point) && point.size() >= best.point.size())
      best = {std::string(left[2]), point, std::string(right[0]), unescape(right[1])};
  }
  return best;
}

bool any_of(std::string_view name, std::initializer_list<std::string_view> list) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

std::optional<DiskKind> kind_by_filesystem(std::string_view filesystem) {
  if (any_of(filesystem, {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})) return DiskKind::ram;
  if (any_of(filesystem, {"overlay", "aufs", "fuse.fuse-overlayfs"})) return DiskKind::overlay;
  if (any_of(filesystem, {"virtiofs", "vboxsf", "fuse.vmhgfs-fuse"})) return DiskKind::virtual_disk;
  if (any_of(filesystem, {"nfs",          "nfs4",          "cifs",           "smb3",           "smbfs",
                          "ceph",         "fuse.ceph",     "fuse.sshfs",     "lustre",         "gpfs",
                          "9p",           "beegfs",        "glusterfs",      "fuse.glusterfs", "afs",
                          "ocfs2",        "gfs2",          "orangefs",       "fuse.juicefs",   "fuse.s3fs",
                          "fuse.gcsfuse", "fuse.mount-s3", "fuse.blobfuse2", "fuse.rclone",    "wekafs"}))
    return DiskKind::network;
  return std::nullopt;
}

// The folder of a block device in sysfs, of the whole disk when `name` is a partition; empty when unknown.
std::string block_folder(const SystemFiles& files, const Mount& mount) {
  std::error_code error;
  Path real = std::filesystem::canonical(files.path("sys/dev/block/" + mount.device_number), error);
  if (error && mount.source.starts_with("/dev/")) {
    std::string name = Path(mount.source).filename().string();
    if (mount.source.starts_with("/dev/mapper/") && files.is_real())  // a link to ../dm-3
      name = std::filesystem::canonical(mount.source, error).filename().string();
    error.clear();
    real = std::filesystem::canonical(files.path("sys/class/block/" + name), error);
  }
  if (error) return {};
  const std::string name = real.filename().string();
  const Path parent = real.parent_path();
  if (files.exists("sys/class/block/" + name + "/partition")) return parent.filename().string();
  return name;
}

DiskKind kind_by_name(std::string_view name, std::string_view model) {
  if (name.starts_with("zram") || name.starts_with("ram") || name.starts_with("pmem")) return DiskKind::ram;
  if (name.starts_with("nbd") || name.starts_with("rbd") || name.starts_with("drbd")) return DiskKind::network;
  if (name.starts_with("vd") || name.starts_with("xvd")) return DiskKind::virtual_disk;
  const std::string lower = to_lower(model);
  for (const std::string_view sign :
       {"qemu", "virtual", "vbox", "vmware", "elastic block store", "persistentdisk", "msft"})
    if (lower.find(sign) != std::string::npos) return DiskKind::virtual_disk;
  if (name.starts_with("nvme")) return DiskKind::nvme;
  return DiskKind::unknown;
}

// Kind and model of a whole disk. What lies below a mapped or striped one decides; the slowest kind when they differ.
DiskKind block_kind(const SystemFiles& files, const std::string& name, std::string& model, int depth = 0) {
  const std::string base = "sys/class/block/" + name;
  const std::string own_model = files.line(base + "/device/model").value_or("");
  if (model.empty()) model = own_model;
  if (const DiskKind kind = kind_by_name(name, own_model); kind != DiskKind::unknown) return kind;
  const auto parts = files.names(base + "/slaves");
  if (!parts.empty() && depth < 4) {
    DiskKind slowest = DiskKind::unknown;
    for (std::string part : parts) {
      if (files.exists("sys/class/block/" + part + "/partition")) {
        std::error_code error;
        const Path real = std::filesystem::canonical(files.path("sys/class/block/" + part), error);
        if (!error) part = real.parent_path().filename().string();
      }
      const DiskKind kind = block_kind(files, part, model, depth + 1);
      if (slowest == DiskKind::unknown || (kind != DiskKind::unknown && kind > slowest)) slowest = kind;
    }
    return slowest;
  }
  const auto rotational = files.integer(base + "/queue/rotational");
  if (!rotational) return DiskKind::unknown;
  return *rotational != 0 ? DiskKind::hdd : DiskKind::ssd;
}

struct Space {
  std::string path;
  bool writable = false;
  Bytes total = 0, free = 0;
};

// Touches the file system: only under a time limit.
Space measure_space(Path folder) {
  Space space;
  std::error_code error;
  while (!std::filesystem::is_directory(folder, error) && folder != folder.parent_path()) folder = folder.parent_path();
  space.path = folder.string();
  space.writable = ::access(folder.c_str(), W_OK) == 0;
  struct statvfs info = {};
  if (::statvfs(folder.c_str(), &info) == 0) {
    std::uint64_t total = 0, free = 0;
    if (checked_mul(info.f_blocks, info.f_frsize, total) && checked_mul(info.f_bavail, info.f_frsize, free))
      space.total = total, space.free = free;
  }
  return space;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : value;
}

}  // namespace

std::vector<FolderUse> folders_of_interest() {
  std::vector<FolderUse> folders;
  std::error_code error;
  if (const Path here = std::filesystem::current_path(error); !error) folders.push_back({"work", here});
  const std::string home = environment("HOME");
  if (home.starts_with('/')) folders.push_back({"home", home});
  Path models;
  if (const std::string hub = environment("HF_HUB_CACHE"); !hub.empty())
    models = hub;
  else if (const std::string hf = environment("HF_HOME"); !hf.empty())
    models = Path(hf) / "hub";
  else if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty())
    models = Path(cache) / "huggingface" / "hub";
  else if (!home.empty())
    models = Path(home) / ".cache" / "huggingface" / "hub";
  if (models.is_absolute()) folders.push_back({"models", models.lexically_normal()});
  return folders;
}

DiskInfo describe_disk(const SystemFiles& files, const Path& folder) {
  DiskInfo disk;
  disk.path = folder.string();
  const Mount mount = find_mount(files, folder.string());
  disk.mount = mount.point;
  disk.filesystem = mount.filesystem;
  disk.device = mount.source;
  if (const auto kind = kind_by_filesystem(mount.filesystem)) {
    disk.kind = *kind;
    return disk;
  }
  const std::string name = block_folder(files, mount);
  if (name.empty()) return disk;
  disk.device = name;
  disk.kind = block_kind(files, name, disk.model);
  return disk;
}

std::vector<DiskInfo> read_disks(const SystemFiles& files, const std::vector<FolderUse>& folders) {
  std::vector<DiskInfo> disks;
  for (const FolderUse& wanted : folders) {
    Path folder = wanted.folder;
    std::optional<Space> space;
    if (files.is_real()) {
      space = with_time_limit<Space>(kSpaceSeconds, [folder] { return measure_space(folder); });
      if (space) {
        std::error_code error;
        const Path real = std::filesystem::canonical(space->path, error);  // links may lead to another mount
        folder = error ? Path(space->path) : real;
      }
    }
    DiskInfo disk = describe_disk(files, folder);
    const auto same =
        std::find_if(disks.begin(), disks.end(), [&](const DiskInfo& d) { return d.mount == disk.mount; });
    if (same != disks.end()) {
      same->uses.push_back(wanted.use);
      if (!same->writable && space && space->writable) same->writable = true, same->path = space->path;
      continue;
    }
    disk.uses = {wanted.use};
    if (space)
      disk.writable = space->writable, disk.total_bytes = space->total, disk.free_bytes = space->free;
    else if (files.is_real())
      disk.note = Note{"hardware_probe.disk_no_answer", {{"path", disk.path}}};
    disks.push_back(std::move(disk));
  }
  return disks;
}

}  // namespace fathom::hardware
